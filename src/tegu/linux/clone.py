"""clone3(2): a process in new namespaces, in a control group, with a descriptor that stands for it.

`clone3` forks as `os.fork` does, but past Python's and libc's fork handlers: only a process with
a single thread may call it, and the child should soon start a program or never stop being simple.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from tegu.linux import libc

__all__ = ["Cloned", "clone3", "fork_flags", "fork_into", "python_forks"]

# linux/sched.h
_CLONE_PIDFD = 0x00001000
_CLONE_PARENT = 0x00008000
_CLONE_INTO_CGROUP = 0x200000000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_PR_GET_TID_ADDRESS = 40
_SIGCHLD = 17


class _CloneArgs(ctypes.Structure):
    """struct clone_args, linux/sched.h (version 2: with `cgroup`)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("pidfd", ctypes.c_uint64),
        ("child_tid", ctypes.c_uint64),
        ("parent_tid", ctypes.c_uint64),
        ("exit_signal", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("stack_size", ctypes.c_uint64),
        ("tls", ctypes.c_uint64),
        ("set_tid", ctypes.c_uint64),
        ("set_tid_size", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
    )


class Cloned:
    """What `clone3` returns in the parent; in the child `pid` is 0 and `pidfd` -1."""

    __slots__ = ("pid", "pidfd")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd


def clone3(namespaces: int, *, cgroup: int | None = None, as_sibling: bool = False) -> Cloned:
    """Fork into new `namespaces` (CLONE_NEW* flags).

    `cgroup` is a descriptor of a cgroup v2 directory to start in (CLONE_INTO_CGROUP, Linux 5.7).
    With `as_sibling` the child's parent is the caller's own (CLONE_PARENT), which then waits for
    it. The pidfd is closed when a program starts. Raises OSError (EPERM, EAGAIN, ENOSPC ...).
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs()
    args.flags = namespaces | _CLONE_PIDFD
    args.pidfd = ctypes.addressof(pidfd)
    if as_sibling:
        args.flags |= _CLONE_PARENT  # the caller's own exit signal is used
    else:
        args.exit_signal = _SIGCHLD
    if cgroup is not None:
        args.flags |= _CLONE_INTO_CGROUP
        args.cgroup = cgroup
    pid = libc.syscall("clone3", ctypes.byref(args), ctypes.sizeof(args))
    if pid == 0:
        return Cloned(0, -1)
    os.set_inheritable(pidfd.value, False)
    return Cloned(pid, pidfd.value)


def fork_into(namespaces: int) -> Cloned:
    """Fork a Python into new `namespaces` as `os.fork` would, with Python's fork handlers.

    By clone(2), whose flags a system call filter can see, and not clone3; handlers of
    pthread_atfork(3) are not called. Only for a process with a single thread. Raises OSError.
    """
    pidfd = ctypes.c_int(-1)
    flags, place = fork_flags(namespaces)
    rest = (place, 0) if os.uname().machine == "x86_64" else (0, place)
    with python_forks() as forks:
        pid = libc.syscall("clone", flags, 0, ctypes.byref(pidfd), *rest)
        if pid == 0:
            forks.in_child()
            return Cloned(0, -1)
    return Cloned(pid, pidfd.value)


def fork_flags(namespaces: int) -> tuple[int, int]:
    """Return clone(2)'s flags for a fork that has a pidfd, and its place for the thread's id.

    That place is libc's own note of it, which raise(3) and abort(3) use; set as fork(3) does, where
    the kernel tells it (PR_GET_TID_ADDRESS), else 0.
    """
    flags = namespaces | _CLONE_PIDFD | _SIGCHLD
    place = _thread_id_place()
    return (flags | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID if place else flags), place


class python_forks:  # noqa: N801 - reads as a statement
    """Around a fork that Python does not make: what it does before and after its own
    (PyOS_BeforeFork in Python's C API)."""

    __slots__ = ("_after",)

    def __enter__(self) -> python_forks:
        self._after = ctypes.pythonapi.PyOS_AfterFork_Parent
        ctypes.pythonapi.PyOS_BeforeFork()
        return self

    def in_child(self) -> None:
        """Be the child: first thing there."""
        self._after = ctypes.pythonapi.PyOS_AfterFork_Child

    def __exit__(self, *_: object) -> None:
        self._after()


@cache
def _thread_id_place() -> int:
    """Return the address at which libc keeps this thread's id (prctl(2)); 0 when untold."""
    place = ctypes.c_void_p(0)
    try:
        libc.call("prctl", ctypes.c_int(_PR_GET_TID_ADDRESS), ctypes.byref(place))
    except OSError:
        return 0
    return place.value or 0
