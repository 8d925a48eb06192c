"""clone3(2): a process in new namespaces, in a control group, with a descriptor that stands for it.

`clone3` forks as `os.fork` does, but past Python's and libc's fork handlers: only a process with
a single thread may call it, and the child should soon start a program or never stop being simple.
"""

from __future__ import annotations

import ctypes
import os

from tegu.linux import libc

__all__ = ["Cloned", "clone3"]

# linux/sched.h
_CLONE_PIDFD = 0x00001000
_CLONE_PARENT = 0x00008000
_CLONE_INTO_CGROUP = 0x200000000
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
