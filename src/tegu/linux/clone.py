"""clone3(2): a process in new namespaces, in a control group, with a descriptor that stands for it.

`clone3` forks as `os.fork` does, but past Python's and libc's fork handlers: only a process with
a single thread may call it, and the child should soon start a program or never stop being simple.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from tegu.linux import libc

__all__ = ["Cloned", "clone3", "fork_into"]

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

    By clone(2), whose flags a system call filter can see, and not clone3. libc's own note of the
    thread's id, which raise(3) and abort(3) use, is set as fork(3) does, where the kernel tells the
    place (PR_GET_TID_ADDRESS); handlers of pthread_atfork(3) are not called. Only for a process
    with a single thread. Raises OSError.
    """
    python = ctypes.pythonapi
    pidfd = ctypes.c_int(-1)
    flags = namespaces | _CLONE_PIDFD | _SIGCHLD
    place = _thread_id_place()
    if place:
        flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    told = ctypes.byref(pidfd)
    rest = (place, 0) if os.uname().machine == "x86_64" else (0, place)
    python.PyOS_BeforeFork()
    try:
        pid = libc.syscall("clone", flags, 0, told, *rest)
    except BaseException:
        python.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return Cloned(0, -1)
    python.PyOS_AfterFork_Parent()
    os.set_inheritable(pidfd.value, False)
    return Cloned(pid, pidfd.value)


@cache
def _thread_id_place() -> int:
    """Return the address at which libc keeps this thread's id (prctl(2)); 0 when untold."""
    place = ctypes.c_void_p(0)
    try:
        libc.call("prctl", ctypes.c_int(_PR_GET_TID_ADDRESS), ctypes.byref(place))
    except OSError:
        return 0
    return place.value or 0
