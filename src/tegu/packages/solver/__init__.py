"""The solver, run by the system's own Python because that is the one that has libsolv's binding.

Nothing here may import anything of Tegu or from PyPI: `tegu.packages.solve` starts it as a process
(JSON in, JSON out) and puts only the directory above this one on its path.
"""
