"""Forking in one call, by what was compiled of native/fork.c; without it, invocation.enter."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from tegu.linux import libc
from tegu.linux.clone import Cloned, fork_flags, python_forks
from tegu.sandbox import native
from tegu.sandbox.fn.zygote import CODE

__all__ = ["Forker", "find_forker"]


class _Filter(ctypes.Structure):
    """struct sock_fprog, linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _Order(ctypes.Structure):
    """struct order, native/fork.c."""

    _fields_ = (
        ("flags", ctypes.c_ulong),
        ("thread_id", ctypes.c_ulong),
        ("options", ctypes.c_char_p),
        ("directory", ctypes.c_char_p),
        ("filter", _Filter),
        ("files", ctypes.c_ulong),
        ("processes", ctypes.c_ulong),
        ("pidfd", ctypes.c_int),
        ("network", ctypes.c_int),
        ("link", ctypes.c_int),
        ("log", ctypes.c_int),
        ("rules", ctypes.c_int),
        ("user", ctypes.c_int),
    )


class Forker:
    """The compiled fork, with what all forks of a zygote have in common filled in."""

    def __init__(self, library: ctypes.CDLL, world: dict[str, Any], rules: int, tmp: str) -> None:
        self._fork = library.tegu_fork
        self._fork.restype = ctypes.c_long
        flags, place = fork_flags(libc.CLONE_NEWNS | libc.CLONE_NEWPID)
        program = world["filter"]
        self._order = _Order(
            flags=flags,
            thread_id=place,
            options=tmp.encode(),
            directory=CODE.encode(),
            filter=_Filter(len(program) // 8, program),
            files=world["files"],
            processes=world["pids"],
            rules=rules,
        )
        self._told = ctypes.byref(self._order)

    def fork(self, network: int, link: int, log: int, user: int) -> Cloned:
        """Return the new process; in it `pid` is 0, and all is given up that a zygote may do."""
        order = self._order
        order.network, order.link, order.log, order.user = network, link, log, user
        with python_forks() as forks:
            pid = self._fork(self._told)
            if pid == 0:
                forks.in_child()
                return Cloned(0, -1)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid), "fork")
        return Cloned(pid, order.pidfd)


def find_forker(world: dict[str, Any], rules: int, tmp: str) -> Forker | None:
    """Return the compiled fork, or None where it was not built, or cannot be loaded."""
    path = os.path.join(os.path.dirname(native.__file__), "tegu-fork.so")  # noqa: PTH118, PTH120
    try:
        return Forker(ctypes.CDLL(path), world, rules, tmp)
    except OSError:
        return None
