"""New bytes out of old ones: the instructions of bsdiff.

Colin Percival, "Naive differences of executable code" (2003): an instruction adds so many bytes of
the difference to bytes of the old file, then takes so many new bytes, then moves on in the old
file. Where code has only moved, the difference is nearly all zeros, which compress to nothing.

The three numbers of instructions are streams of their own, in which they compress better: seven
bits a byte, the lowest first, the eighth says that more follow (LEB128). A move has its sign in the
lowest bit.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from tegu.errors import VerifyError

__all__ = ["Patch", "Source", "coded", "coded_move", "patched"]

_CHUNK = 1 << 16


class Source(Protocol):
    """Where bytes come from: `take` returns exactly `size` of them or raises VerifyError."""

    def take(self, size: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Patch:
    """What instructions and bytes are read from."""

    add: Source
    take: Source
    move: Source
    difference: Source
    fresh: Source


def coded(value: int) -> bytes:
    """Return a number, not negative, as it stands in a stream."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def coded_move(value: int) -> bytes:
    """Return a move as it stands in its stream."""
    return coded(value * 2 if value >= 0 else -value * 2 - 1)


def _number(source: Source) -> int:
    value = 0
    for shift in range(0, 63, 7):
        byte = source.take(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise VerifyError("the delta has a number that is too large")


def patched(old: bytes | mmap.mmap, count: int, size: int, patch: Patch) -> Iterator[bytes]:
    """Yield the new content, `size` bytes, by `count` instructions; VerifyError if they overrun.

    `old` is read within its bounds only.
    """
    position, left = 0, size
    for number in range(count):
        add, take, move = _number(patch.add), _number(patch.take), _number(patch.move)
        if add == take == 0 and number:
            raise VerifyError("the delta has instructions that make nothing")
        if add + take > left:
            raise VerifyError("the delta makes a file longer than it says")
        if not 0 <= position <= position + add <= len(old):
            raise VerifyError("the delta reads past the end of an old file")
        left -= add + take
        for start in range(0, add, _CHUNK):
            length = min(_CHUNK, add - start)
            begin = position + start
            yield _sum(old[begin : begin + length], patch.difference.take(length))
        for start in range(0, take, _CHUNK):
            yield patch.fresh.take(min(_CHUNK, take - start))
        position += add + (-((move + 1) // 2) if move & 1 else move // 2)
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
