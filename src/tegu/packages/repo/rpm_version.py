"""RPM versions compared as rpm compares them (rpm-version(7))."""

from __future__ import annotations

import re
from functools import cmp_to_key

from tegu.packages.evr import comparison

__all__ = ["compare", "sort_key"]

_SEGMENT = re.compile(r"[0-9]+|[A-Za-z]+|~|\^")


def _split(version: str) -> tuple[str, str]:
    """Return version and release."""
    upstream, _, release = version.partition("-")
    return upstream, release


def _part(one: str, other: str) -> int:
    """Compare segment by segment; what separates them does not count."""
    left, right = _SEGMENT.findall(one), _SEGMENT.findall(other)
    for index in range(max(len(left), len(right))):
        a = left[index] if index < len(left) else ""
        b = right[index] if index < len(right) else ""
        if a == b:
            continue
        # `~` is older than anything, even the end; `^` newer than the end, older than the rest.
        for mark, sign in (("~", -1), ("^", -1)):
            if mark in (a, b):
                if mark == "^" and not (a and b):
                    return 1 if a == mark else -1
                return sign if a == mark else -sign
        if not a or not b:
            return 1 if a else -1
        if a.isdigit() != b.isdigit():
            return 1 if a.isdigit() else -1
        if a.isdigit():
            x, y = int(a), int(b)
            if x != y:
                return -1 if x < y else 1
        else:
            return -1 if a < b else 1
    return 0


compare = comparison(_split, _part)
"""Return a negative number, zero or a positive one as the first (E:V-R) is older, same, newer."""

sort_key = cmp_to_key(compare)
"""A key for sorting versions, oldest first."""
