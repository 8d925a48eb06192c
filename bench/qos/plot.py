"""Plots of what the bench found, as small SVG files for the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.qos.scenarios import CHANGING_RATES, CHANGING_STEP, OBJECTIVE

from tegu.files import write_atomic

__all__ = ["write_plots"]

_STYLE = (
    "<style>text{font:12px sans-serif;fill:#444}.t{font-weight:bold}.g{stroke:#ddd}"
    ".o{stroke:#c33;stroke-dasharray:5 3}@media(prefers-color-scheme:dark){text{fill:#bbb}"
    ".g{stroke:#444}}</style>"
)
_COLORS = {
    "static layer": "#1a7f37",
    "with feedback": "#0969da",
    "65 % rule": "#bf8700",
    "equal weights": "#8250df",
    "uncontrolled": "#cf222e",
    "alone": "#888",
}
_OTHER = "#57606a"


def write_plots(
    folder: Path, rows: Sequence[Mapping[str, Any]], windows: Mapping[str, Sequence[float]]
) -> None:
    """Write qos-trade.svg (p99 against batch work) and qos-changing.svg (p99 over time)."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [k for k in ("cpu", "io", "memory") if any(r["load"] == k for r in rows)]
    if kinds:
        write_atomic(folder / "qos-trade.svg", _trade(rows, kinds))
    if windows:
        write_atomic(folder / "qos-changing.svg", _changing(windows))


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{_STYLE}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "g") -> str:
    return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" class="{kind}"/>'


def _trade(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    wide, high, left, top = 210, 220, 50, 40
    parts = []
    names: list[str] = []
    for column, kind in enumerate(kinds):
        x0 = left + column * (wide + 30)
        here = [r for r in rows if r["load"] == kind and r["control"] != "alone"]
        decades = max(1, math.ceil(math.log10(max(r["of alone"] for r in here))))
        parts.append(_text(x0, 20, kind, ' class="t"'))
        for decade in range(decades + 1):
            y = top + high - high * decade / decades
            parts += [_line(x0, y, x0 + wide, y), _text(x0 - 6, y + 4, f"{10**decade}x", _END)]
        for percent in (0, 50, 100):
            parts.append(_text(x0 + wide * percent / 105, top + high + 18, f"{percent}", _MIDDLE))
        for row in here:
            x = x0 + wide * min(row["batch %"], 105) / 105
            y = top + high - high * max(0.0, math.log10(row["of alone"])) / decades
            color = _COLORS.get(row["control"], _OTHER)
            parts.append(
                f'<circle cx="{x:.0f}" cy="{y:.0f}" r="6" fill="{color}" fill-opacity=".8">'
                f"<title>{escape(row['control'])}</title></circle>"
            )
            if row["control"] not in names:
                names.append(row["control"])
    parts.append(_text(left, top + high + 36, "batch work, % of uncontrolled; p99, of alone"))
    parts += _legend(names, left, top + high + 58)
    return _svg(left + len(kinds) * (wide + 30), top + high + 70, parts)


_END = ' text-anchor="end"'
_MIDDLE = ' text-anchor="middle"'


def _legend(names: Sequence[str], x: float, y: float) -> list[str]:
    parts = []
    for name in names:
        color = _COLORS.get(name, _OTHER)
        parts += [f'<circle cx="{x:.0f}" cy="{y - 4:.0f}" r="5" fill="{color}"/>']
        parts.append(_text(x + 9, y, name))
        x += 30 + 6.6 * len(name)
    return parts


def _changing(windows: Mapping[str, Sequence[float]]) -> str:
    shown = [n for n in ("uncontrolled", "equal weights", "with feedback", "alone") if n in windows]
    wide, high, left, top = 640, 220, 50, 20
    count = max(len(windows[n]) for n in shown)
    most = max(max(windows[n]) for n in shown)
    low, decades = 1e-4, math.ceil(math.log10(most / 1e-4))

    def at(number: int, p99: float) -> str:
        y = top + high - high * math.log10(max(p99, low) / low) / decades
        return f"{left + wide * (number + 0.5) / count:.0f},{y:.0f}"

    parts = []
    for decade in range(decades + 1):
        y = top + high - high * decade / decades
        parts += [_line(left, y, left + wide, y)]
        parts += [_text(left - 6, y + 4, f"{low * 10**decade * 1e3:g} ms", _END)]
    y = top + high - high * math.log10(OBJECTIVE / low) / decades
    parts += [_line(left, y, left + wide, y, "o")]
    for number, rate in enumerate(CHANGING_RATES):
        x = left + wide * (number + 0.5) * CHANGING_STEP / count
        parts.append(_text(x, top + high + 18, str(rate), _MIDDLE))
    for name in shown:
        points = " ".join(at(i, p) for i, p in enumerate(windows[name]))
        color = _COLORS.get(name, _OTHER)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    words = f"requests a second, {CHANGING_STEP} s each; p99 of each second; dashed: the objective"
    parts.append(_text(left, top + high + 36, words))
    parts += _legend(shown, left, top + high + 58)
    return _svg(left + wide + 20, top + high + 70, parts)
