"""Which line of a TOML text every key stands on; `tomllib` reads values but keeps no positions.

This is a scanner, not a parser: it follows the structure of a text that `tomllib` has already
accepted and steps over the values. The grammar is that of https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

__all__ = ["MAX_DEPTH", "Location", "locate"]

Location = tuple[str | int, ...]
"""A path into the parsed document: table keys are strings, list elements are indices from 0."""

MAX_DEPTH = 32
"""Tables and lists within each other; no option of a definition needs more than four."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t]*")
_VOID = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_BASIC = re.compile(r'"(?:[^"\\\n]+|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
# A multi-line string ends at the first three quotes that are not escaped; one or two more quotes
# right behind them belong to the string.
_MULTI_BASIC_STEP = re.compile(r'\\.|"{3,5}', re.DOTALL)
_MULTI_LITERAL_STEP = re.compile(r"'{3,5}")


def locate(text: str) -> dict[Location, int]:
    """Return the line (from 1) of every table, key and list element of `text`.

    `text` must be valid TOML with `\\n` or `\\r\\n` line ends. A table stands where its own header
    is, or else where it is first implied; an element of an array of tables at its `[[header]]`.
    Raises RecursionError for what is nested more than MAX_DEPTH deep.
    """
    return _Scanner(text.replace("\r\n", "\n")).document()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.breaks = [m.start() for m in re.finditer("\n", text)]
        self.lines: dict[Location, int] = {}
        self.lengths: dict[Location, int] = {}  # of arrays of tables

    def document(self) -> dict[Location, int]:
        table: Location = ()
        self.skip(_VOID)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                table = self.header("[[", "]]")
            elif self.text[self.at] == "[":
                table = self.header("[", "]")
            else:
                self.pair(table)
            self.skip(_VOID)
        return self.lines

    def header(self, opening: str, closing: str) -> Location:
        line = self.line()
        self.at += len(opening)
        parts = self.key()
        self.at += len(closing)
        here: Location = ()
        for part in parts[:-1]:
            here = (*here, part)
            self.lines.setdefault(here, line)
            if here in self.lengths:
                here = (*here, self.lengths[here] - 1)
        here = (*here, parts[-1])
        if opening == "[":
            self.lines[here] = line  # its own header, rather than the one that implied it
            return here
        self.lines.setdefault(here, line)
        index = self.lengths.get(here, 0)
        self.lengths[here] = index + 1
        here = (*here, index)
        self.lines[here] = line
        return here

    def pair(self, table: Location) -> None:
        line = self.line()
        here = table
        for part in self.key():
            here = (*here, part)
            self.lines.setdefault(here, line)
        self.at += 1  # the equals sign
        self.skip(_BLANK)
        self.value(here)

    def key(self) -> list[str]:
        parts = []
        while True:
            self.skip(_BLANK)
            parts.append(self.key_part())
            self.skip(_BLANK)
            if self.at >= len(self.text) or self.text[self.at] != ".":
                return parts
            if len(parts) > MAX_DEPTH:
                raise RecursionError("a key of too many parts")
            self.at += 1

    def key_part(self) -> str:
        first = self.text[self.at]
        if first == "'":
            return self.take(_LITERAL)[1:-1]
        if first == '"':
            quoted = self.take(_BASIC)
            if "\\" not in quoted:
                return quoted[1:-1]
            return str(tomllib.loads(f"key = {quoted}")["key"])
        return self.take(_BARE)

    def value(self, here: Location) -> None:
        if len(here) > MAX_DEPTH:
            raise RecursionError("values nested too deeply")
        first = self.text[self.at]
        if first == "[":
            self.array(here)
        elif first == "{":
            self.inline_table(here)
        elif self.text.startswith('"""', self.at):
            self.multi_line(_MULTI_BASIC_STEP)
        elif self.text.startswith("'''", self.at):
            self.multi_line(_MULTI_LITERAL_STEP)
        elif first == '"':
            self.take(_BASIC)
        elif first == "'":
            self.take(_LITERAL)
        else:
            self.take(_SCALAR)

    def multi_line(self, step: re.Pattern[str]) -> None:
        self.at += 3
        ended = False
        while not ended:
            match = step.search(self.text, self.at)
            if match is None:
                raise ValueError(f"not valid TOML at line {self.line()}")
            self.at = match.end()
            ended = not match.group().startswith("\\")

    def array(self, here: Location) -> None:
        self.at += 1
        index = 0
        self.skip(_VOID)
        while self.text[self.at] != "]":
            element = (*here, index)
            self.lines[element] = self.line()
            self.value(element)
            index += 1
            self.skip(_VOID)
            if self.text[self.at] == ",":
                self.at += 1
                self.skip(_VOID)
        self.at += 1

    def inline_table(self, here: Location) -> None:
        self.at += 1
        self.skip(_VOID)
        while self.text[self.at] != "}":
            self.pair(here)
            self.skip(_VOID)
            if self.text[self.at] == ",":
                self.at += 1
                self.skip(_VOID)
        self.at += 1

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"not valid TOML at line {self.line()}")
        self.at = match.end()
        return match.group()

    def line(self) -> int:
        return bisect_right(self.breaks, self.at - 1) + 1
