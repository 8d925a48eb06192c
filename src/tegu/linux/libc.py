"""The few system calls that Python 3.11 lacks, through libc, with errno turned into OSError."""

from __future__ import annotations

import ctypes
import os
from functools import cache

__all__ = [
    "AT_EMPTY_PATH",
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWTIME",
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
    "MS_SHARED",
    "MS_SLAVE",
    "MS_UNBINDABLE",
    "call",
    "close_range",
    "exchange",
    "file_system",
    "mount",
    "parent_death_signal",
    "pivot_root",
    "prctl",
    "preload",
    "setns",
    "signal_descriptor",
    "syncfs",
    "syscall",
    "trim_memory",
    "umount2",
    "unshare",
]

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x00000080

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

AT_EMPTY_PATH = 0x1000  # linux/fcntl.h

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
_PR_SET_PDEATHSIG = 1
_CLOSE_RANGE_CLOEXEC = 4
# Without a libc wrapper on Debian 12: asm/unistd_64.h and asm-generic/unistd.h. Numbers from 424
# on are the same on every architecture.
_NUMBERS = {
    "clone": {"x86_64": 56, "aarch64": 220},
    "pivot_root": {"x86_64": 155, "aarch64": 41},
    "capset": {"x86_64": 126, "aarch64": 91},
    "seccomp": {"x86_64": 317, "aarch64": 277},
    "finit_module": {"x86_64": 313, "aarch64": 273},
    "delete_module": {"x86_64": 176, "aarch64": 106},
    "kexec_file_load": {"x86_64": 320, "aarch64": 294},
    "capget": {"x86_64": 125, "aarch64": 90},
    "bpf": {"x86_64": 321, "aarch64": 280},
    "ioprio_set": {"x86_64": 251, "aarch64": 30},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "sched_setattr": {"x86_64": 314, "aarch64": 274},
    "perf_event_open": {"x86_64": 298, "aarch64": 241},
}
_COMMON_NUMBERS = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}


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


def preload() -> None:
    """Look everything up that a process may call after a clone, so that it need not."""
    for name in ("mount", "prctl", "setns", "sethostname", "syscall", "umount2", "unshare"):
        getattr(_libc(), name)
    for name in (*_NUMBERS, *_COMMON_NUMBERS):
        _number(name)


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


def exchange(one: str, other: str) -> None:
    """Let two paths of one file system change places in a single step (renameat2(2)).

    Raises OSError, EINVAL where the file system cannot.
    """
    call(
        "renameat2",
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(one),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(other),
        ctypes.c_uint(_RENAME_EXCHANGE),
        what=one,
    )


def syncfs(fd: int) -> None:
    """Bring all of the file system of `fd` to the disk (syncfs(2))."""
    call("syncfs", ctypes.c_int(fd), what="syncfs")


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    call("umount2", target.encode(), ctypes.c_int(flags), what=target)


@cache
def _number(name: str) -> int:
    number = _COMMON_NUMBERS.get(name)
    return _NUMBERS[name][os.uname().machine] if number is None else number


def syscall(name: str, *args: object, what: str = "") -> int:
    """Make the system call `name` by its number; whole numbers are passed as C longs."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return call("syscall", ctypes.c_long(_number(name)), *longs, what=what or name)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); both may be "." (the manual page's section on it explains why)."""
    syscall("pivot_root", new_root.encode(), put_old.encode(), what=new_root)


def trim_memory() -> None:
    """malloc_trim(3): give memory that is free back to the kernel, where libc can."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace (of CLONE_NEW* `kind`) that `fd` refers to."""
    call("setns", ctypes.c_int(fd), ctypes.c_int(kind), what="setns")


def close_range(first: int, last: int = 0xFFFFFFFF, *, on_exec: bool = False) -> None:
    """close_range(2): close all descriptors `first` to `last`, now or when a program starts."""
    flags = _CLOSE_RANGE_CLOEXEC if on_exec else 0
    syscall("close_range", first, last, flags)


def signal_descriptor(number: int) -> int:
    """signalfd(2): block a signal; returns a descriptor that can be read when it was sent."""
    import _signal  # type: ignore[import-not-found] # what signal wraps, without enum

    _signal.pthread_sigmask(_signal.SIG_BLOCK, [number])
    mask = (ctypes.c_ulong * 16)()  # sigset_t of glibc and musl
    mask[0] = 1 << number - 1
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    return call("signalfd", ctypes.c_int(-1), mask, ctypes.c_int(flags), what="signalfd")


def file_system(fd: int) -> int:
    """fstatfs(2): the number of the file system that `fd` (O_PATH will do) is on."""
    room = (ctypes.c_long * 32)()  # struct statfs begins with f_type, a long; it has 120 bytes
    call("fstatfs", ctypes.c_int(fd), room, what="fstatfs")
    return room[0]


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    """prctl(2) with whole numbers."""
    args = (ctypes.c_ulong(v) for v in (value, third, 0, 0))
    return call("prctl", ctypes.c_int(option), *args, what="prctl")


def parent_death_signal(signal: int) -> None:
    """prctl(PR_SET_PDEATHSIG): get `signal` when the parent dies."""
    prctl(_PR_SET_PDEATHSIG, signal)
