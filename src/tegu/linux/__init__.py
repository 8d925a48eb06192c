"""The kernel's interfaces, once: namespaces, mounts, and what later rooms need of it.

Everything here speaks to the kernel directly and knows nothing of images or machines.
"""

from tegu.linux.mounts import bind, mount, overlay, pivot, unmount
from tegu.linux.namespaces import IdMap, id_map, run_isolated

__all__ = [
    "IdMap",
    "bind",
    "id_map",
    "mount",
    "overlay",
    "pivot",
    "run_isolated",
    "unmount",
]
