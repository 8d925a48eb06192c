"""Debian versions compared as dpkg compares them (deb-version(7))."""

from __future__ import annotations

import re
from functools import cmp_to_key

from tegu.packages.evr import comparison

__all__ = ["compare", "sort_key"]

_PARTS = re.compile(r"(\d+)")


def _split(version: str) -> tuple[str, str]:
    """Return upstream version and revision."""
    upstream, dash, revision = version.rpartition("-")
    return (upstream, revision) if dash else (version, "")


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


compare = comparison(_split, _compare_part)
"""Return a negative number, zero or a positive one as the first is older, the same, or newer."""

sort_key = cmp_to_key(compare)
"""A key for sorting versions, oldest first."""
