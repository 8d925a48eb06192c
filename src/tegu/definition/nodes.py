"""A parsed TOML document in which every value knows the file and line that it came from.

Merging works on these, so that an error about the merged result can still point at its origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tegu.definition.locate import Location

__all__ = ["Branch", "Leaf", "Node", "Place", "Row", "annotate", "find", "plain"]


@dataclass(frozen=True, slots=True)
class Place:
    """A line (from 1; 0: the file as a whole) of a file."""

    file: Path
    line: int


@dataclass(slots=True)
class Leaf:
    """A string, number, boolean, date or time."""

    place: Place
    value: object


@dataclass(slots=True)
class Branch:
    """A table."""

    place: Place
    items: dict[str, Node] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """A list."""

    place: Place
    items: list[Node] = field(default_factory=list)


Node = Leaf | Branch | Row


def annotate(
    value: object, file: Path, lines: Mapping[Location, int], here: Location = (), line: int = 1
) -> Node:
    """Return `value` (what tomllib parsed at `here`) as a node; `line` is its parent's."""
    line = lines.get(here, line)
    place = Place(file, line)
    if isinstance(value, dict):
        return Branch(
            place, {k: annotate(v, file, lines, (*here, k), line) for k, v in value.items()}
        )
    if isinstance(value, list):
        elements = enumerate(value)
        return Row(place, [annotate(v, file, lines, (*here, i), line) for i, v in elements])
    return Leaf(place, value)


def plain(node: Node) -> object:
    """Return what `node` holds as dicts, lists and scalars."""
    if isinstance(node, Branch):
        return {key: plain(item) for key, item in node.items.items()}
    if isinstance(node, Row):
        return [plain(item) for item in node.items]
    return node.value


def find(root: Node, location: Location) -> tuple[Node, Location]:
    """Return the deepest node on the way to `location`, and how much of `location` led there."""
    node = root
    for depth, part in enumerate(location):
        child: Node | None = None
        if isinstance(node, Branch) and isinstance(part, str):
            child = node.items.get(part)
        elif isinstance(node, Row) and isinstance(part, int) and part < len(node.items):
            child = node.items[part]
        if child is None:
            return node, location[:depth]
        node = child
    return node, location
