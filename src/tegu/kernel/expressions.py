"""The expressions of Kconfig's `depends on`: parsed, evaluated, and explained when they fail.

Grammar and the three values n < m < y: Documentation/kbuild/kconfig-language.rst.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Expression", "parse_expression"]

_TOKEN = re.compile(
    r"""\s*(?:(&&|\|\||!=|<=|>=|[!()=<>])|("[^"]*"|'[^']*')|(\$\((?:[^()]|\([^()]*\))*\))"""
    r"""|([A-Za-z0-9_.-]+))"""
)
_ORDER = {"n": 0, "m": 1, "y": 2}
_NAMES = "nmy"

Values = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Expression:
    """A node: `kind` is "and", "or", "not", "compare" or "symbol"; leaves have `text`."""

    kind: str
    parts: tuple[Expression, ...] = ()
    text: str = ""

    def value(self, values: Values) -> int:
        """Return 0, 1 or 2 (n, m, y), with the options' values from `values`."""
        if self.kind == "and":
            return min(p.value(values) for p in self.parts)
        if self.kind == "or":
            return max(p.value(values) for p in self.parts)
        if self.kind == "not":
            return 2 - self.parts[0].value(values)
        if self.kind == "compare":
            return 2 if self._compared(values) else 0
        if self.text.startswith("$("):
            return 2  # what the tools can do: not known here, `Symbols.unmet` says so
        return _ORDER.get(_plain(self.text, values), 0)

    def _compared(self, values: Values) -> bool:
        left, right = (_plain(p.text, values) for p in self.parts)
        if any(p.text[:1] in "\"'" for p in self.parts):
            # Beside a quoted text the other is a string, and one that is not set is empty.
            left, right = (
                "" if value == "n" and p.text[:1] not in "\"'" else value
                for p, value in zip(self.parts, (left, right), strict=True)
            )
        if self.text in ("=", "!="):
            return (left == right) == (self.text == "=")
        if left in _ORDER and right in _ORDER:
            left, right = str(_ORDER[left]), str(_ORDER[right])
        try:
            difference = _number(left) - _number(right)
        except ValueError:
            return False
        return {
            "<": difference < 0,
            ">": difference > 0,
            "<=": difference <= 0,
            ">=": difference >= 0,
        }[self.text]

    def unmet(self, values: Values, wanted: int) -> list[str]:
        """Return the parts that keep the whole below `wanted`, as text with their values."""
        if self.value(values) >= wanted:
            return []
        if self.kind == "and":
            return [text for part in self.parts for text in part.unmet(values, wanted)]
        if self.kind == "symbol" and not self.text.startswith("$("):
            return [f"{self.text} (is {_plain(self.text, values) or 'n'})"]
        return [str(self)]

    def __str__(self) -> str:
        if self.kind == "symbol":
            return self.text
        if self.kind == "not":
            return f"!{_bracketed(self.parts[0])}"
        if self.kind == "compare":
            return f"{self.parts[0]}{self.text}{self.parts[1]}"
        return (" && " if self.kind == "and" else " || ").join(map(_bracketed, self.parts))


def _bracketed(part: Expression) -> str:
    return f"({part})" if part.kind in ("and", "or") else str(part)


def _plain(text: str, values: Values) -> str:
    if text[:1] in "\"'" or text in _ORDER:
        return text.strip("\"'")
    if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", text):
        return text
    return values(text).strip('"')


def _number(text: str) -> int:
    return int(text, 0)


def parse_expression(text: str) -> Expression:
    """Parse an expression; raises ValueError when it is none."""
    tokens = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"not an expression: {text!r}")
        tokens.append(match[0].strip())
        position = match.end()
    node, rest = _either(tokens)
    if rest:
        raise ValueError(f"not an expression: {text!r}")
    return node


def _either(tokens: list[str]) -> tuple[Expression, list[str]]:
    return _chain(tokens, "||", "or", _both)


def _both(tokens: list[str]) -> tuple[Expression, list[str]]:
    return _chain(tokens, "&&", "and", _one)


def _chain(
    tokens: list[str],
    operator: str,
    kind: str,
    below: Callable[[list[str]], tuple[Expression, list[str]]],
) -> tuple[Expression, list[str]]:
    part, rest = below(tokens)
    parts = [part]
    while rest and rest[0] == operator:
        part, rest = below(rest[1:])
        parts.append(part)
    return (parts[0] if len(parts) == 1 else Expression(kind, tuple(parts))), rest


def _one(tokens: list[str]) -> tuple[Expression, list[str]]:
    if not tokens:
        raise ValueError("an expression ends too early")
    head, rest = tokens[0], tokens[1:]
    if head == "!":
        part, rest = _one(rest)
        return Expression("not", (part,)), rest
    if head == "(":
        part, rest = _either(rest)
        if not rest or rest[0] != ")":
            raise ValueError("an expression lacks a closing bracket")
        return part, rest[1:]
    if head in ("&&", "||", ")", "=", "!=", "<", ">", "<=", ">="):
        raise ValueError(f"an expression has {head!r} where a name should be")
    leaf = Expression("symbol", text=head)
    if rest and rest[0] in ("=", "!=", "<", ">", "<=", ">="):
        if len(rest) < 2:
            raise ValueError("an expression ends too early")
        return Expression("compare", (leaf, Expression("symbol", text=rest[1])), rest[0]), rest[2:]
    return leaf, rest
