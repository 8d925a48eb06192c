"""The zygote's loop as it was compiled of native/fork.c; without it, runtime.py has one."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from tegu.linux import libc
from tegu.linux.clone import fork_flags, python_forks
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
        ("control", ctypes.c_int),
        ("ended", ctypes.c_int),
        ("wanted", ctypes.c_int),
        ("first_user", ctypes.c_int),
        ("rules", ctypes.c_int),
    )


class Forker:
    """The compiled loop, with what all forks of a zygote have in common filled in."""

    def __init__(self, world: dict[str, Any], rules: int, tmp: str, first_user: int) -> None:
        """Load it; raises OSError where it was not built, AttributeError where it is another's."""
        path = os.path.join(os.path.dirname(native.__file__), "tegu-fork.so")  # noqa: PTH118, PTH120
        self._serve = ctypes.PyDLL(path).tegu_serve
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
            wanted=world["spare_networks"],
            first_user=first_user,
            rules=rules,
        )

    def serve(self, control: int, ended: int) -> None:
        """Fork as orders come in; returns in forks, which have given up what a zygote may do."""
        self._order.control, self._order.ended = control, ended
        told = ctypes.byref(self._order)
        with python_forks() as forks:
            self._serve(told)
            forks.in_child()


def find_forker(world: dict[str, Any], rules: int, tmp: str, first_user: int) -> Forker | None:
    """Return the compiled loop, or None where there is none."""
    try:
        return Forker(world, rules, tmp, first_user)
    except (OSError, AttributeError):
        return None
