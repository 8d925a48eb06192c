"""The newer mount calls: mounts as descriptors, moved, mapped and changed in one step.

open_tree(2), move_mount(2) (Linux 5.2) and mount_setattr(2) (5.12). Paths are plain strings: a
sandbox's zygote uses this and must stay small.
"""

from __future__ import annotations

import ctypes
import os

from tegu.linux import libc

__all__ = [
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_RDONLY",
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
_MOUNT_ATTR_IDMAP = 0x100000
_OPEN_TREE_CLONE = 1
_FROM_EMPTY_PATH = 0x4
# linux/fcntl.h
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_SET_STRING = 1
_CREATE = 6


def detached(
    source: str,
    *,
    recursive: bool = False,
    read_only: bool = False,
    flags: int = 0,
    idmap: int | None = None,
) -> int:
    """Return a descriptor of a copy of the mount at `source` that is attached nowhere.

    `flags` are MOUNT_ATTR_* of mount_setattr(2); `idmap` is a user namespace whose ids the copy
    shows (MOUNT_ATTR_IDMAP, Linux 5.12; needs privilege over the file system). `attach` makes it
    visible; closing the descriptor lets go of it. Raises OSError.
    """
    rec = _AT_RECURSIVE if recursive else 0
    fd = libc.syscall(
        "open_tree",
        _AT_FDCWD,
        source.encode(),
        _OPEN_TREE_CLONE | os.O_CLOEXEC | rec,
        what=source,
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


def new_mount(kind: str, options: dict[str, str], flags: int = 0) -> int:
    """Return a descriptor of a new mount of file system `kind`, attached nowhere.

    It can be filled through the descriptor (`dir_fd`) before anyone else sees it. Raises OSError.
    """
    context = libc.syscall("fsopen", kind.encode(), _CLOEXEC, what=kind)
    try:
        for name, value in options.items():
            libc.syscall(
                "fsconfig", context, _SET_STRING, name.encode(), value.encode(), 0, what=name
            )
        libc.syscall("fsconfig", context, _CREATE, None, None, 0, what=kind)
        return libc.syscall("fsmount", context, _CLOEXEC, flags, what=kind)
    finally:
        os.close(context)


def attach(fd: int, target: str) -> None:
    """Make the detached mount `fd` visible at `target` (move_mount(2)), which must be its kind."""
    libc.syscall("move_mount", fd, b"", _AT_FDCWD, target.encode(), _FROM_EMPTY_PATH, what=target)


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
    idmap: int | None = None,
) -> None:
    """mount_setattr(2) on a mount given by descriptor or path: set `flags`, unset `clear`."""
    attr = _MountAttr(flags, clear, 0, 0)
    if idmap is not None:
        attr.attr_set |= _MOUNT_ATTR_IDMAP
        attr.userns_fd = idmap
    rec = _AT_RECURSIVE if recursive else 0
    if isinstance(at, int):
        directory, path, mode = at, b"", libc.AT_EMPTY_PATH | rec
    else:
        directory, path, mode = _AT_FDCWD, at.encode(), rec
    libc.syscall(
        "mount_setattr",
        directory,
        path,
        mode,
        ctypes.byref(attr),
        ctypes.sizeof(attr),
        what="mount_setattr" if isinstance(at, int) else at,
    )
