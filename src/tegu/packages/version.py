"""Debian versions compared as dpkg compares them (deb-version(7))."""

from __future__ import annotations

import re
from functools import cmp_to_key

__all__ = ["compare", "sort_key"]

_PARTS = re.compile(r"(\d+)")


def compare(one: str, other: str) -> int:
    """Return a negative number, zero or a positive one as `one` is older, the same, or newer."""
    left, right = _split(one), _split(other)
    if left[0] != right[0]:
        return -1 if left[0] < right[0] else 1
    return _compare_part(left[1], right[1]) or _compare_part(left[2], right[2])


sort_key = cmp_to_key(compare)
"""A key for sorting versions, oldest first."""


def _split(version: str) -> tuple[int, str, str]:
    """Return epoch, upstream version and revision."""
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdigit():
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    return (int(epoch), upstream, revision) if dash else (int(epoch), rest, "")


def _compare_part(one: str, other: str) -> int:
    left, right = _PARTS.split(one), _PARTS.split(other)
    # Both alternate text, digits, text ...; what is missing counts as empty text and zero.
    for index in range(max(len(left), len(right))):
        a = left[index] if index < len(left) else ""
        b = right[index] if index < len(right) else ""
        if a == b:
            continue
        if index % 2:
            difference = int(a or 0) - int(b or 0)
            if difference:
                return -1 if difference < 0 else 1
        elif (x := _order(a)) != (y := _order(b)):
            return -1 if x < y else 1
    return 0


def _order(text: str) -> list[int]:
    """Return the weights of non-digits: `~` before the end, the end before letters, then others."""
    return [*map(_weight, text), 0]


def _weight(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
