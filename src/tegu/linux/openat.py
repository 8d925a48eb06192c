"""openat2(2): opening a path without being led out of a directory, whatever its links say; and
fstatfs(2): what kind of file system that led to."""

from __future__ import annotations

import ctypes
import os

from tegu.linux import libc

__all__ = ["on_kernel_files", "open_in_root"]

# linux/openat2.h
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_O_CLOEXEC = 0o2000000


# linux/magic.h: proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs, bpf, nsfs, mqueue.
_KERNEL_FILES = frozenset(
    [
        *(0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x64626720, 0x74726163),
        *(0x73636673, 0xCAFE4A11, 0x6E736673, 0x19800202),
    ]
)


def on_kernel_files(fd: int) -> bool:
    """Whether an open file is of /proc, /sys and the like, which are no data. Raises OSError."""
    about = (ctypes.c_long * 32)()  # struct statfs: 15 longs, of which the first is f_type
    libc.call("fstatfs", ctypes.c_int(fd), about, what="fstatfs")
    return about[0] in _KERNEL_FILES


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` with the directory `root` as its "/": neither "..", nor links lead out of it.

    Links under /proc/PID/fd and the like are refused (RESOLVE_NO_MAGICLINKS). A name that is no
    UTF-8 comes as os.fsdecode gives it. Raises OSError.
    """
    how = _OpenHow(flags | _O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    return libc.syscall(
        "openat2", root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how), what=path
    )
