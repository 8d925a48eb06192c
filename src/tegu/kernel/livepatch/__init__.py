"""Live patches: a source patch becomes a module that replaces functions of a running kernel.

`read_target` reads the kernel to patch from its packages, `build_livepatch` compiles the files
that a patch touches before and after it, compares them function by function, and makes a module
of what changed. Loading it is the work of `tegu.host.livepatch`, in the machine.
"""

from tegu.kernel.livepatch.build import Livepatch, build_livepatch
from tegu.kernel.livepatch.target import Target, read_target

__all__ = ["Livepatch", "Target", "build_livepatch", "read_target"]
