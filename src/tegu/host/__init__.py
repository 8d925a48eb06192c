"""What runs inside a Tegu machine: boot files of new kernels, first boot, updates.

`files/` is laid out like a root file system and goes into the package `tegu` as it is. Nothing here
needs more than Python and what `tegu` itself depends on.
"""

from tegu.host.config import BootConfig, load_config
from tegu.host.kernel import Kernel, KernelChange, list_kernels, remove_kernel, update_kernels

__all__ = [
    "BootConfig",
    "Kernel",
    "KernelChange",
    "list_kernels",
    "load_config",
    "remove_kernel",
    "update_kernels",
]
