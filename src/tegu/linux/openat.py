"""openat2(2): opening a path without being led out of a directory, whatever its links say."""

from __future__ import annotations

import ctypes
import os

from tegu.linux import libc

__all__ = ["open_in_root"]

# linux/openat2.h
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_O_CLOEXEC = 0o2000000


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
