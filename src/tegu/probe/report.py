"""What a reader sees: tables, histograms and stacks, as data that the front door prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Table", "bucket_name", "duration", "histogram", "indented", "quantile", "who"]


@dataclass(frozen=True)
class Table:
    """A table: its columns, its rows, and what it shows in one line."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]] = field(default_factory=list)


def duration(ns: float) -> str:
    """Return nanoseconds with a unit and three digits: 1234567 is `1.23 ms`."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size * 0.9995:
            value = ns / size
            return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"
    return f"{ns:.0f} ns"


def bucket_name(slot: int) -> str:
    """Return what a slot of a histogram in powers of two of microseconds holds."""
    low = "0" if slot == 0 else duration(2**slot * 1e3)
    return f"{low} - {duration(2 ** (slot + 1) * 1e3)}"


def quantile(slots: Sequence[int], part: float) -> float:
    """Return nanoseconds that `part` (0 to 1) of the counted ones stay below: a slot's end."""
    total, seen = sum(slots), 0
    for slot, count in enumerate(slots):
        seen += count
        if total and seen >= part * total:
            return float(2 ** (slot + 1) * 1000)
    return 0.0


def histogram(title: str, slots: Sequence[int]) -> Table:
    """Return the table of a histogram in powers of two of microseconds."""
    used = [i for i, n in enumerate(slots) if n]
    most = max(slots, default=0)
    rows = (
        [
            (bucket_name(i), slots[i], "#" * max(1 if slots[i] else 0, round(40 * slots[i] / most)))
            for i in range(used[0], used[-1] + 1)
        ]
        if used
        else []
    )
    return Table(title, ("time", "count", ""), rows)


def indented(stack: Iterable[str], *, mark: str = "") -> list[str]:
    """Return a stack's lines, innermost first."""
    return [f"      {mark}{frame}" for frame in stack]


def who(task: Mapping[str, Any]) -> str:
    """Return `comm[tid] in cgroup`."""
    return f"{task['comm']}[{int(task['tid'])}] in {task['cgroup']}"
