"""The few system calls that Python 3.11 lacks, through libc, with errno turned into OSError."""

from __future__ import annotations

import ctypes
import os
from functools import cache

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MNT_DETACH",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "call",
    "mount",
    "parent_death_signal",
    "pivot_root",
    "umount2",
    "unshare",
]

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
# pivot_root has no libc wrapper; asm/unistd_64.h and asm-generic/unistd.h.
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object, what: str = "") -> int:
    """Call libc's `name`; raises OSError with `what` as its file name when it returns -1."""
    result: int = getattr(_libc(), name)(*args)
    if result == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), what or name)
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    call("unshare", ctypes.c_int(flags), what="unshare")


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    call(
        "mount",
        source.encode(),
        target.encode(),
        fstype.encode(),
        ctypes.c_ulong(flags),
        data.encode() if data else None,
        what=target,
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    call("umount2", target.encode(), ctypes.c_int(flags), what=target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); both may be "." (the manual page's section on it explains why)."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    call(
        "syscall",
        ctypes.c_long(number),
        new_root.encode(),
        put_old.encode(),
        what=new_root,
    )


def parent_death_signal(signal: int) -> None:
    """prctl(PR_SET_PDEATHSIG): get `signal` when the parent dies."""
    call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(signal), 0, 0, 0, what="prctl")
