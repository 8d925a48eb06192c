"""Which file an inode is, as far as the process that used it still says so."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["device_name", "path_of"]

_PROC = Path("/proc")
_MINOR_BITS = 20  # MINORBITS, include/linux/kdev_t.h


def path_of(pid: int, device: int, inode: int, *, fd: int | None = None) -> str | None:
    """Return the path under which `pid` has a file open; None: it has not, or is gone.

    `device` is the number that the kernel uses inside itself. File systems that give stat(2)
    another one (overlayfs, btrfs) are not found so.
    """
    directory = _PROC / str(pid) / "fd"
    try:
        names = [str(fd)] if fd is not None else os.listdir(directory)  # noqa: PTH208 - many
    except OSError:
        return None
    wanted = os.makedev(device >> _MINOR_BITS, device & ((1 << _MINOR_BITS) - 1)), inode
    for name in names:
        try:
            about = os.stat(directory / name)  # noqa: PTH116
            if (about.st_dev, about.st_ino) == wanted:
                return str((directory / name).readlink())
        except OSError:
            continue
    return None


def device_name(device: int) -> str:
    """Return `MAJOR:MINOR`."""
    return f"{device >> _MINOR_BITS}:{device & ((1 << _MINOR_BITS) - 1)}"
