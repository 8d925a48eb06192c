"""A mount of type cgroup: what the container may see of its own control groups."""

from __future__ import annotations

import os

from tegu.errors import UnsupportedError
from tegu.linux import libc, mountapi

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from tegu.oci.config import Config

__all__ = ["cgroup_mount"]


def cgroup_mount(config: Config, groups: dict[str, str]) -> int:
    """Return a detached mount that shows the groups of the container (`groups`, by controller).

    Version 2 in a namespace of its own is mounted anew; else the container's own directories are
    shown, and nothing above them. Raises UnsupportedError when the container has none.
    """
    if not groups:
        raise UnsupportedError("a mount of type cgroup: the container has no control group")
    if "" in groups:
        if "cgroup" in config.namespaces:
            return mountapi.new_mount("cgroup2", {})
        return _private(groups[""])
    top = mountapi.new_mount("tmpfs", {"mode": "0755", "size": "64k"})
    try:
        for directory in dict.fromkeys(groups.values()):
            names = [name for name, where in groups.items() if where == directory]
            shown = ",".join(n.removeprefix("name=") for n in names)
            os.mkdir(shown, 0o755, dir_fd=top)
            for name in names:
                if name != shown and len(names) > 1:
                    os.symlink(shown, name, dir_fd=top)
    except BaseException:
        os.close(top)
        raise
    return top


def fill(groups: dict[str, str], at: int, flags: int) -> None:
    """Attach version 1's directories below the tmpfs `at`, which must be attached by now."""
    for directory in dict.fromkeys(groups.values()):
        names = [name for name, where in groups.items() if where == directory]
        shown = ",".join(n.removeprefix("name=") for n in names)
        target = os.open(
            shown, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at
        )
        fd = _private(directory)
        try:
            mountapi.set_attributes(fd, flags)
            mountapi.attach(fd, target)
        finally:
            os.close(fd)
            os.close(target)


def _private(directory: str) -> int:
    fd = mountapi.detached(directory)
    mountapi.set_attributes(fd, 0, propagation=libc.MS_PRIVATE)
    return fd
