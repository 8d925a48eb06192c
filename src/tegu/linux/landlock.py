"""Landlock: a process restricts itself, without privilege (landlock(7)).

A restricted process also cannot change mounts, nor trace what is outside of its domain.
"""

from __future__ import annotations

import ctypes
import errno
import os

from tegu.linux import libc

__all__ = [
    "FS_ALL",
    "FS_DEVICES",
    "FS_EXECUTE",
    "FS_READ",
    "FS_REFER",
    "FS_WRITE",
    "SCOPE_ABSTRACT_SOCKETS",
    "SCOPE_SIGNALS",
    "abi",
    "allow_beneath",
    "restrict",
    "ruleset",
]

# linux/landlock.h
_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1
FS_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15
_MAKE_CHAR = 1 << 6
_MAKE_BLOCK = 1 << 11
FS_REFER = 1 << 13
FS_READ = _READ_FILE | _READ_DIR
FS_DEVICES = _MAKE_CHAR | _MAKE_BLOCK
FS_WRITE = 0x7FFE & ~FS_READ & ~FS_DEVICES  # write, remove, make anything but devices, refer
FS_ALL = 0xFFFF
SCOPE_ABSTRACT_SOCKETS = 1 << 0
SCOPE_SIGNALS = 1 << 1
NET_TCP = 0x3
_ON_FILES = FS_EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """Return the version of Landlock that this kernel has; 0 when it has none, or is not told to.

    2 brings FS_REFER (moves between directories, which version 1 always denies), 4 TCP, 5 device
        ioctls, 6 scopes for signals and abstract sockets.
    """
    try:
        return libc.syscall("landlock_create_ruleset", 0, 0, _CREATE_VERSION)
    except OSError as e:
        if e.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def ruleset(files: int, *, tcp: bool = False, scoped: int = 0) -> int:
    """Return a descriptor of a rule set that denies what it handles unless a rule allows it.

    `files` are FS_* rights; `tcp` denies every bind and connect; `scoped` SCOPE_* flags. Raises
    OSError (E2BIG or EINVAL) when this kernel's version does not know one of them.
    """
    attr = _Ruleset(files, NET_TCP if tcp else 0, scoped)
    size = 24 if scoped else 16 if tcp else 8  # older kernels refuse what they do not know
    return libc.syscall("landlock_create_ruleset", ctypes.byref(attr), size, 0)


def allow_beneath(rules: int, path: str, access: int) -> None:
    """Allow `access` at `path`, and below it when it is a directory."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):  # noqa: PTH112 - pathlib is not loaded here
            access &= _ON_FILES
        rule = _PathBeneath(access, fd)
        libc.syscall(
            "landlock_add_rule", rules, _RULE_PATH_BENEATH, ctypes.byref(rule), 0, what=path
        )
    finally:
        os.close(fd)


def restrict(rules: int) -> None:
    """Apply the rule set to this process and all that it starts; needs no_new_privileges first."""
    libc.syscall("landlock_restrict_self", rules, 0)
