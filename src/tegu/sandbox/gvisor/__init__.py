"""The class `gvisor`: boxes whose kernel is a program, run by runsc.

`trial` finds out whether runsc starts anything here, `spawn` is the supervisor's part, `bundle`
builds a box's root and its OCI configuration, `host` is the process that holds one box.
"""
