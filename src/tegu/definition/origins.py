"""Where each value of a resolved definition was set: `file:line`, for a comment behind it."""

from __future__ import annotations

from collections.abc import Callable

from tegu.definition.loader import Examined
from tegu.definition.locate import Location
from tegu.definition.nodes import Row, find
from tegu.definition.problems import shown_path

__all__ = ["comments"]


def comments(examined: Examined) -> Callable[[Location], str | None]:
    """Return a function from a location to `file:line` of its value, or None for a default.

    A list is made of elements that may come from several files: each of them has its own.
    """
    root = examined.root

    def comment(location: Location) -> str | None:
        if root is None:
            return None
        node, reached = find(root, location)
        if reached != location or node.place.line == 0 or (isinstance(node, Row) and node.items):
            return None
        return f"{shown_path(node.place.file)}:{node.place.line}"

    return comment
