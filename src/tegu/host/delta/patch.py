"""New bytes out of old ones: the instructions of bsdiff.

Colin Percival, "Naive differences of executable code" (2003): an instruction adds so many bytes of
the difference to bytes of the old file, then takes so many new bytes, then moves on in the old
file. Where code has only moved, the difference is nearly all zeros, which compress to nothing.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

from tegu.errors import VerifyError

__all__ = ["INSTRUCTION", "Source", "patched"]

INSTRUCTION = struct.Struct("<IIi")
"""Bytes to add, bytes to take, then how far to move in the old file (may be negative)."""

_CHUNK = 1 << 16


class Source(Protocol):
    """Where bytes come from: `take` returns exactly `size` of them or raises VerifyError."""

    def take(self, size: int) -> bytes: ...


def patched(
    old: bytes | mmap.mmap,
    count: int,
    size: int,
    control: Source,
    difference: Source,
    fresh: Source,
) -> Iterator[bytes]:
    """Yield the new content, `size` bytes, by `count` instructions; VerifyError if they overrun.

    `old` is read within its bounds only.
    """
    position, left = 0, size
    for _ in range(count):
        add, take, move = INSTRUCTION.unpack(control.take(INSTRUCTION.size))
        if add + take > left:
            raise VerifyError("the delta makes a file longer than it says")
        if not 0 <= position <= position + add <= len(old):
            raise VerifyError("the delta reads past the end of an old file")
        left -= add + take
        for start in range(0, add, _CHUNK):
            length = min(_CHUNK, add - start)
            begin = position + start
            yield _sum(old[begin : begin + length], difference.take(length))
        for start in range(0, take, _CHUNK):
            yield fresh.take(min(_CHUNK, take - start))
        position += add + move
    if left:
        raise VerifyError("the delta makes a file shorter than it says")


@lru_cache(maxsize=4)
def _mask(length: int) -> tuple[int, int]:
    low = int.from_bytes(b"\x7f" * length, "little")
    return low, low ^ int.from_bytes(b"\xff" * length, "little")


def _sum(old: bytes, difference: bytes) -> bytes:
    """Add two strings byte by byte, modulo 256, as two large numbers whose carries stay apart."""
    length = len(difference)
    if difference.count(0) == length:
        return old
    low, high = _mask(length)
    a, b = int.from_bytes(old, "little"), int.from_bytes(difference, "little")
    return (((a & low) + (b & low)) ^ ((a ^ b) & high)).to_bytes(length, "little")
