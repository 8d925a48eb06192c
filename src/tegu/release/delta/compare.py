"""The difference between two contents, by bsdiff: what `tegu.host.delta.patch` puts together."""

from __future__ import annotations

import struct
import zlib
from importlib import import_module
from typing import Any

from tegu.errors import UnsupportedError

__all__ = ["Instruction", "compared", "require_bsdiff"]

Instruction = tuple[int, int, int]

_SIGN = 1 << 63
_CHUNK = 1 << 16
_SMALL = 1 << 15


def compared(old: bytes, new: bytes) -> tuple[list[Instruction], bytes, bytes]:
    """Return instructions, difference and fresh bytes that turn `old` into `new`.

    What both begin and end with is left out of the search, and so is what repeats itself so much
    that bsdiff would take hours: it compresses to nothing anyway.
    """
    head = _same(old, new)
    tail = _same(old[head:][::-1], new[head:][::-1])
    before, after = old[head : len(old) - tail], new[head : len(new) - tail]
    if _repeats(before) or _repeats(after):
        inner, difference, fresh = [(0, len(after), 0)], b"", after
    else:
        inner, difference, fresh = _searched(before, after)
    found = [(head, 0, 0), *inner]
    end = sum(add + move for add, _, move in found)
    found[-1] = (*found[-1][:2], found[-1][2] + len(old) - tail - end)
    found.append((tail, 0, 0))
    return _tidy(found), bytes(head) + difference + bytes(tail), fresh


def _same(a: bytes, b: bytes) -> int:
    """Return how many bytes both begin with."""
    most = min(len(a), len(b))
    place = 0
    while place < most and a[place : place + _CHUNK] == b[place : place + _CHUNK]:
        place += _CHUNK
    place = min(place, most)
    while place < most and a[place] == b[place]:
        place += 1
    return place


def _repeats(data: bytes) -> bool:
    return len(data) > _SMALL and len(zlib.compress(data, 1)) * 64 < len(data)


def _searched(old: bytes, new: bytes) -> tuple[list[Instruction], bytes, bytes]:
    if not new:
        return [], b"", b""
    control, difference, fresh = require_bsdiff().diff(old, new)
    found = []
    # As in a bsdiff file: numbers of 8 bytes, the highest bit for the sign.
    for add, take, move in struct.iter_unpack("<QQQ", control):
        found.append((add, take, _SIGN - move if move >= _SIGN else move))
    return found, bytes(difference), bytes(fresh)


def _tidy(found: list[Instruction]) -> list[Instruction]:
    """Take out instructions that only move; the last one need not move at all."""
    out: list[Instruction] = []
    for add, take, move in found:
        if out and add == 0 and out[-1][2] == 0:
            out[-1] = (out[-1][0], out[-1][1] + take, move)
        elif out and add == take == 0:
            out[-1] = (*out[-1][:2], out[-1][2] + move)
        elif out and out[-1][1] == out[-1][2] == 0:
            out[-1] = (out[-1][0] + add, take, move)
        else:
            out.append((add, take, move))
    if out:
        out[-1] = (*out[-1][:2], 0)
    return [i for i in out if i != (0, 0, 0)]


def require_bsdiff() -> Any:
    """Return the module that compares; UnsupportedError where it is missing."""
    try:
        return import_module("bsdiff4.core")
    except ImportError as e:
        raise UnsupportedError(
            "deltas are made with the Python package bsdiff4, which is not installed",
            hint="pip install 'tegu[works,release]'",
        ) from e
