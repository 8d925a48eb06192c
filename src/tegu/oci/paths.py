"""Paths inside a container's root: followed there and nowhere else, and named by descriptor.

What stands in an image is not to be trusted: a link at any place of a path would lead a plain
mkdir or mount out of the root. openat2(2) with RESOLVE_IN_ROOT follows it inside; what is then
done, is done to the descriptor, so that nobody can change the path in between.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from tegu.errors import TeguError
from tegu.linux import libc
from tegu.linux.openat import open_in_root

__all__ = ["PROC_SUPER_MAGIC", "ensure", "find", "parent"]

# linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0


def find(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open `path` in `root`, O_PATH unless told otherwise. Raises OSError."""
    return open_in_root(root, path, flags)


def parent(root: int, path: str) -> tuple[int, str]:
    """Return a descriptor of the directory that `path` is in, made if need be, and the last name.

    Raises TeguError when there is no such directory to be had, and OSError.
    """
    head, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise TeguError(f"{path}: not a place where something can be made")
    return ensure(root, head or "/", directory=True), name


def ensure(root: int, path: str, *, directory: bool, mode: int = 0o755) -> int:
    """Return an O_PATH descriptor of `path` in `root`, made if it is not there.

    Missing directories on the way are made too. Raises TeguError when what is there is of the
    other kind, and OSError.
    """
    try:
        fd = find(root, path)
    except FileNotFoundError:
        fd = _make(root, path, directory, mode)
    if stat.S_ISDIR(os.fstat(fd).st_mode) != directory:
        os.close(fd)
        raise TeguError(f"{path}: is {'not ' if directory else ''}a directory in the root")
    return fd


def _make(root: int, path: str, directory: bool, mode: int) -> int:
    at, name = parent(root, path)
    try:
        if libc.file_system(at) == PROC_SUPER_MAGIC:
            raise TeguError(f"{path}: no such file or directory in /proc")
        try:
            if directory:
                os.mkdir(name, mode, dir_fd=at)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=at))
        except FileExistsError:
            # Either another one was faster, or a link that leads nowhere is in the way.
            with suppress(FileNotFoundError):
                return find(root, path)
            raise OSError(errno.ENOENT, "a link that leads nowhere is in the way", path) from None
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
