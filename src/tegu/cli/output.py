"""What the verbs print with: tables, sizes, JSON, progress that is silent when piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["human_size", "note", "print_json", "print_table", "progress", "spinner"]


def print_json(value: Any) -> None:
    """Print `value` as indented JSON with sorted keys."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True, default=str)
    sys.stdout.write("\n")


def human_size(size: float) -> str:
    """Return `size` (bytes) with a binary unit: 1536 is `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: drawn on a terminal, tab-separated without a head when piped."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join("" if c is None else str(c) for c in row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("" if c is None else str(c) for c in row))
    Console().print(table)


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield a rich Progress on stderr, disabled unless stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        yield bar


def note(text: str) -> None:
    """Say something worth knowing on stderr."""
    print(f"tegu: note: {text}", file=sys.stderr)


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is going on, on a terminal; silent otherwise."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("...") as status:
        yield lambda text: status.update(f"{text} ...")
