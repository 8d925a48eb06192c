"""The newer mount calls: mounts as descriptors, moved, mapped and changed in one step.

open_tree(2), move_mount(2) (Linux 5.2) and mount_setattr(2) (5.12). Paths are plain strings: a
sandbox's zygote uses this and must stay small.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from tegu.linux import libc

__all__ = [
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NODIRATIME",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NOSYMFOLLOW",
    "MOUNT_ATTR_RDONLY",
    "MOUNT_ATTR__ATIME",
    "attach",
    "detached",
    "new_mount",
    "set_attributes",
]

# linux/mount.h
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
"""The bits that say how access times are kept: relative 0, none 0x10, strict 0x20."""
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
_MOUNT_ATTR_IDMAP = 0x100000
_OPEN_TREE_CLONE = 1
_FROM_EMPTY_PATH = 0x4
_TO_EMPTY_PATH = 0x40
# linux/fcntl.h
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_SET_FLAG = 0
_SET_STRING = 1
_CREATE = 6


def detached(
    source: str | int,
    *,
    recursive: bool = False,
    read_only: bool = False,
    flags: int = 0,
    idmap: int | None = None,
) -> int:
    """Return a descriptor of a copy of the mount at `source` that is attached nowhere.

    `source` is a path or a descriptor (O_PATH will do) of a file or directory.
    `flags` are MOUNT_ATTR_* of mount_setattr(2); `idmap` is a user namespace whose ids the copy
    shows (MOUNT_ATTR_IDMAP, Linux 5.12; needs privilege over the file system). `attach` makes it
    visible; closing the descriptor lets go of it. Raises OSError.
    """
    rec = _AT_RECURSIVE if recursive else 0
    directory, path, mode = _place(source)
    fd = libc.syscall(
        "open_tree",
        directory,
        path,
        _OPEN_TREE_CLONE | os.O_CLOEXEC | rec | mode,
        what=str(source),
    )
    if read_only:
        flags |= MOUNT_ATTR_RDONLY
    try:
        if flags or idmap is not None:
            set_attributes(fd, flags, recursive=recursive, idmap=idmap)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _place(at: str | int) -> tuple[int, bytes, int]:
    """Return directory, path and flags that name `at` in a call of the *at() family."""
    return (at, b"", libc.AT_EMPTY_PATH) if isinstance(at, int) else (_AT_FDCWD, os.fsencode(at), 0)


def new_mount(kind: str, options: Mapping[str, str | None], flags: int = 0) -> int:
    """Return a descriptor of a new mount of file system `kind`, attached nowhere.

    `options` without a value (None) are switches. It can be filled through the descriptor
    (`dir_fd`) before anyone else sees it. Raises OSError.
    """
    context = libc.syscall("fsopen", kind.encode(), _CLOEXEC, what=kind)
    try:
        for name, value in options.items():
            how = _SET_FLAG if value is None else _SET_STRING
            given = None if value is None else os.fsencode(value)
            libc.syscall("fsconfig", context, how, name.encode(), given, 0, what=name)
        libc.syscall("fsconfig", context, _CREATE, None, None, 0, what=kind)
        return libc.syscall("fsmount", context, _CLOEXEC, flags, what=kind)
    finally:
        os.close(context)


def attach(fd: int, target: str | int) -> None:
    """Make the detached mount `fd` visible at `target` (move_mount(2)), which must be its kind.

    `target` is a path, or a descriptor of the very directory or file to be covered.
    """
    directory, path, mode = _place(target)
    flags = _FROM_EMPTY_PATH | (_TO_EMPTY_PATH if mode else 0)
    libc.syscall("move_mount", fd, b"", directory, path, flags, what=str(target))


class _MountAttr(ctypes.Structure):
    """struct mount_attr, linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_attributes(
    at: int | str,
    flags: int,
    *,
    clear: int = 0,
    recursive: bool = False,
    propagation: int = 0,
    idmap: int | None = None,
) -> None:
    """mount_setattr(2) on a mount given by descriptor or path: set `flags`, unset `clear`.

    `propagation` is one of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE; 0 leaves it.
    """
    attr = _MountAttr(flags, clear, propagation, 0)
    if idmap is not None:
        attr.attr_set |= _MOUNT_ATTR_IDMAP
        attr.userns_fd = idmap
    rec = _AT_RECURSIVE if recursive else 0
    directory, path, mode = _place(at)
    libc.syscall(
        "mount_setattr",
        directory,
        path,
        mode | rec,
        ctypes.byref(attr),
        ctypes.sizeof(attr),
        what="mount_setattr" if isinstance(at, int) else at,
    )
