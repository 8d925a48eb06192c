"""What is wrong with a definition: one line each, with its place and what may be meant instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tegu.definition.locate import Location
from tegu.definition.nodes import Place
from tegu.errors import DefinitionError

__all__ = ["Flaw", "Problem", "Stop", "as_error", "nearest", "one_line", "shown_path"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` and `column` count from 1; None: unknown."""

    file: Path
    line: int | None
    key: str
    what: str
    hint: str | None = None
    column: int | None = None

    def __str__(self) -> str:
        where = shown_path(self.file)
        if self.line:
            where += f":{self.line}"
            if self.column:
                where += f":{self.column}"
        return one_line(": ".join(part for part in (where, self.key, self.what) if part))

    def as_data(self) -> dict[str, str | int | None]:
        """Return the fields, for JSON."""
        return {
            "file": str(self.file),
            "line": self.line,
            "column": self.column,
            "key": self.key,
            "message": self.what,
            "hint": self.hint,
        }

    @classmethod
    def at(cls, place: Place, key: str, what: str, hint: str | None = None) -> Problem:
        """Return a problem at a node's `place`."""
        return cls(place.file, place.line or None, key, what, hint)


class Flaw(NamedTuple):
    """Something wrong at `location` of a definition, before its place in a file is looked up."""

    location: Location
    what: str
    hint: str | None = None


class Stop(Exception):  # noqa: N818 - never leaves this room
    """Reading cannot go on. Turned into a DefinitionError, or into data, by the loader."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def as_error(problems: Sequence[Problem]) -> DefinitionError:
    """Return one error for all `problems`: the first as message, every one in the hint."""
    first = problems[0]
    if len(problems) == 1:
        return DefinitionError(str(first), hint=first.hint and one_line(first.hint))
    lines = [f"{len(problems)} problems:"]
    lines += [f"{p} ({one_line(p.hint)})" if p.hint else str(p) for p in problems]
    return DefinitionError(str(first), hint="\n".join(lines))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`, or None when none is like it."""
    candidates = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.6)
    return candidates[close[0]] if close else None


def shown_path(path: Path) -> str:
    """Return `path` as a person would write it: relative when it is under the working directory."""
    try:
        return one_line(str(path.relative_to(Path.cwd())))
    except (ValueError, FileNotFoundError):
        return one_line(str(path))


def one_line(text: str) -> str:
    """Return `text` with what can not be printed (line breaks, bytes that are no text) escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
