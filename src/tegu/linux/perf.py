"""Periodic samples of what the processors do: perf_event_open(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from tegu.errors import UnsupportedError
from tegu.linux.libc import syscall

__all__ = ["online_cpus", "sample_clock"]

# include/uapi/linux/perf_event.h
_TYPE_SOFTWARE = 1
_COUNT_SW_CPU_CLOCK = 0
_FLAG_FREQ = 1 << 10
_FLAG_FD_CLOEXEC = 8
_ATTR_SIZE = 128


def online_cpus() -> list[int]:
    """Return the numbers of the processors that are in use."""
    found: list[int] = []
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def sample_clock(cpu: int, hertz: int) -> int:
    """Open an event that fires `hertz` times per second of work on `cpu`; returns its descriptor.

    It counts by a timer (PERF_COUNT_SW_CPU_CLOCK), which virtual machines have too.
    """
    attributes = struct.pack(
        "=IIQQQQQ",
        _TYPE_SOFTWARE,
        _ATTR_SIZE,
        _COUNT_SW_CPU_CLOCK,
        hertz,
        0,
        0,
        _FLAG_FREQ,
    ).ljust(_ATTR_SIZE, b"\0")
    buffer = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
    try:
        return syscall("perf_event_open", ctypes.addressof(buffer), -1, cpu, -1, _FLAG_FD_CLOEXEC)
    except OSError as e:
        if e.errno in (errno.EPERM, errno.EACCES):
            raise UnsupportedError(
                "no privilege to sample processors", hint="run as root, or with CAP_PERFMON"
            ) from e
        raise UnsupportedError(f"no perf events here: {os.strerror(e.errno or 0)}") from e
