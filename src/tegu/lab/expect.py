"""What a text must be like: the expectations of a plan, and what to say when they do not hold."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from tegu.definition import Table
from tegu.lab.template import fill

__all__ = ["Allowed", "Pattern", "Text", "check_text"]

_SHOWN: Final = 20  # lines of a difference; the whole output is in the report anyway


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as e:
        raise ValueError(f"not a regular expression: {e}") from e
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression of Python's `re`; `^` and `$` match at every line."""


class Allowed(Table):
    """A line that may occur, and why."""

    pattern: Pattern
    reason: Annotated[str, Field(min_length=1)]


class Text(Table):
    """Expectations of a text; all that are given must hold.

    White space at the end of the text and of its lines does not count.
    """

    equals: str | None = None
    """The whole text."""
    lines: str | None = None
    """The lines of the text, in any order."""
    contains: list[str] = Field(default_factory=list)
    """Strings that occur."""
    matches: list[Pattern] = Field(default_factory=list)
    """Regular expressions that are found."""
    lacks: list[Pattern] = Field(default_factory=list)
    """Regular expressions that are not found."""
    only: list[Allowed] | None = None
    """Every line that is not empty must match one of these, from its first character on."""


def check_text(text: str, wanted: Text, variables: Mapping[str, str], what: str) -> list[str]:
    """Return one message for each expectation that `text` does not meet; `what` names the text."""
    given = _tidy(text)
    out = []
    if wanted.equals is not None:
        expected = _tidy(fill(wanted.equals, variables))
        if given != expected:
            out.append(f"{what} is not as expected:\n{_difference(expected, given)}")
    if wanted.lines is not None:
        expected = "\n".join(sorted(_lines(fill(wanted.lines, variables))))
        actual = "\n".join(sorted(_lines(given)))
        if actual != expected:
            out.append(f"the lines of {what} differ:\n{_difference(expected, actual)}")
    for part in wanted.contains:
        sought = fill(part, variables)
        if sought not in given:
            out.append(f"{what} does not contain {sought!r}")
    out += [
        f"{what} does not match {pattern!r}"
        for pattern in wanted.matches
        if not _search(pattern, given, variables)
    ]
    for pattern in wanted.lacks:
        found = _search(pattern, given, variables)
        if found:
            out.append(f"{what} matches {pattern!r}: {found.group()[:200]!r}")
    if wanted.only is not None:
        patterns = [re.compile(fill(a.pattern, variables, re.escape)) for a in wanted.only]
        others = [line for line in _lines(given) if not any(p.match(line) for p in patterns)]
        if others:
            shown = "\n".join(others[:_SHOWN])
            more = f"\n... and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            out.append(f"{what} has {len(others)} lines that are not allowed:\n{shown}{more}")
    return out


def _search(pattern: str, text: str, variables: Mapping[str, str]) -> re.Match[str] | None:
    return re.search(fill(pattern, variables, re.escape), text, re.MULTILINE)


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def _lines(text: str) -> list[str]:
    return [line for line in _tidy(text).splitlines() if line]


def _difference(expected: str, actual: str) -> str:
    lines = list(
        difflib.unified_diff(
            expected.splitlines(), actual.splitlines(), "expected", "actual", lineterm="", n=0
        )
    )
    lines = [line for line in lines if not line.startswith("@@")]
    more = [f"... and {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN + 2 else []
    return "\n".join(lines[: _SHOWN + 2] + more)
