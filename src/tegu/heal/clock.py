"""The clocks beside each other: what the system takes for the time, and what the hardware says."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path

from tegu.heal.snapshot import text

__all__ = ["Clock", "read_clock"]

_STA_UNSYNC = 0x0040  # linux/timex.h
_TIMEX_BYTES = 208
_STATUS_WORD = 10  # struct timex on 64 bits: modes, pad, offset, freq, maxerror, esterror, status


@dataclass(frozen=True, slots=True)
class Clock:
    """The system's clock; `hardware_ahead` in seconds, None where there is no hardware clock."""

    synchronised: bool
    """Whether a time daemon says that it follows a reference (adjtimex(2))."""
    hardware_ahead: float | None


def read_clock(root: Path = Path("/")) -> Clock:
    """Compare; the hardware clock counts whole seconds, and is taken to run in UTC."""
    word = text(root / "sys/class/rtc/rtc0/since_epoch").strip()
    now = time.time()
    ahead = int(word) + 0.5 - now if word.isdigit() else None
    return Clock(_synchronised(), ahead)


def _synchronised() -> bool:
    room = (ctypes.c_int * (_TIMEX_BYTES // 4))()
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.byref(room))
    return state >= 0 and not room[_STATUS_WORD] & _STA_UNSYNC
