"""The kernel's interfaces, once: processes, namespaces, mounts, cgroups, and what confines.

Everything here speaks to the kernel directly and knows nothing of images or machines. What the
package itself offers is loaded when it is asked for: a sandbox's first process imports single
modules (`tegu.linux.libc`, `.clone` ...) and must stay small.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; the typing module takes long to load
if TYPE_CHECKING:
    from tegu.linux.mounts import bind, mount, overlay, pivot, unmount
    from tegu.linux.namespaces import IdMap, id_map, run_isolated, write_id_maps

__all__ = [
    "IdMap",
    "bind",
    "id_map",
    "mount",
    "overlay",
    "pivot",
    "run_isolated",
    "unmount",
    "write_id_maps",
]

_MOUNTS = ("bind", "mount", "overlay", "pivot", "unmount")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = "tegu.linux.mounts" if name in _MOUNTS else "tegu.linux.namespaces"
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
