"""Flame graphs: stacks as nested bars in one SVG file, without scripts or other files.

The width of a bar is what its function and all that it called weigh; below it is its caller
(brendangregg.com/flamegraphs.html tells how to read one). A bar's title, which browsers show when
pointed at, has the whole name, the weight and the share.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.sax.saxutils import escape

__all__ = ["flame_graph"]

_WIDTH = 1200
_ROW = 17
_MARGIN = 34
_LETTER = 7.2  # of the font, in pixels
_NARROWEST = 0.4


@dataclass
class _Frame:
    weight: float = 0
    calls: dict[str, _Frame] = field(default_factory=dict)


class _Bar(NamedTuple):
    name: str
    depth: int
    x: float
    width: float
    weight: float


def flame_graph(stacks: Iterable[tuple[list[str], float]], *, title: str, unit: str = "") -> str:
    """Return the SVG of stacks, outermost frame first, each with its weight (in `unit`)."""
    root = _Frame()
    for stack, weight in stacks:
        root.weight += weight
        frame = root
        for name in stack:
            frame = frame.calls.setdefault(name, _Frame())
            frame.weight += weight
    bars = list(_bars(root, "all", 0, 0.0, float(_WIDTH)))
    depth = max((b.depth for b in bars), default=0) + 1
    height = depth * _ROW + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' font-family="monospace" font-size="12">',
        f"<title>{_xml(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_WIDTH / 2}" y="22" text-anchor="middle" font-size="16">{_xml(title)}</text>',
    ]
    for bar in bars:
        share = 100 * bar.weight / root.weight if root.weight else 0
        y = height - _MARGIN - (bar.depth + 1) * _ROW
        label = f"{bar.name}: {bar.weight:g}{unit and ' ' + unit} ({share:.2f} %)"
        fits = int((bar.width - 4) / _LETTER)
        shown = bar.name if len(bar.name) <= fits else bar.name[: max(fits - 2, 0)] + ".."
        parts.append(
            f"<g><title>{_xml(label)}</title>"
            f'<rect x="{bar.x:.1f}" y="{y}" width="{max(bar.width - 0.5, 0.3):.1f}"'
            f' height="{_ROW - 1}" rx="1" fill="{_colour(bar.name)}"/>'
            + (f'<text x="{bar.x + 3:.1f}" y="{y + 12}">{_xml(shown)}</text>' if fits >= 3 else "")
            + "</g>"
        )
    parts.append("</svg>\n")
    return "\n".join(parts)


def _bars(root: _Frame, name: str, depth: int, x: float, width: float) -> Iterator[_Bar]:
    pending = [(root, name, depth, x, width)]
    while pending:
        frame, name, depth, x, width = pending.pop()
        yield _Bar(name, depth, x, width, frame.weight)
        if not frame.weight:
            continue
        for called in sorted(frame.calls):
            inner = frame.calls[called]
            share = width * inner.weight / frame.weight
            if share >= _NARROWEST:
                pending.append((inner, called, depth + 1, x, share))
            x += share


def _xml(words: str) -> str:
    """Return `words` as they may stand in XML 1.0, which has no place for control characters."""
    return escape("".join(c if c.isprintable() else "?" for c in words))


def _colour(name: str) -> str:
    """Return a warm colour, or a blue one for the kernel; the same for the same name."""
    shade = zlib.crc32(name.encode())
    if name.endswith("_[k]"):
        return f"rgb({80 + shade % 40},{150 + shade // 64 % 60},{200 + shade // 4096 % 50})"
    return f"rgb({205 + shade % 50},{90 + shade // 64 % 130},{shade // 4096 % 60})"
