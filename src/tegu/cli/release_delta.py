"""`tegu release delta`: what turns the tree of one release into that of another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.cli.output import human_size, print_json, print_table, spinner

if TYPE_CHECKING:
    from tegu.release.delta import Made

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the verb to `tegu release`."""
    app.command(epilog="Example: tegu release delta tegu-26.10 tegu-26.11 -o 26.10-26.11.tgd")(
        delta
    )


def delta(
    old: Annotated[str, typer.Argument(help="The tree that machines have.")],
    new: Annotated[str, typer.Argument(help="The tree that they shall have.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The delta; FILE.json describes it.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the delta between two trees: the changed files, as differences, compressed together.

    A tree is a directory, a file with an EROFS image, or an image of the store (its key, name or
    file). Machines apply it to what they have; docs/deltas.md tells what is in one.
    """
    from tegu.errors import UsageError
    from tegu.files import write_atomic

    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no directory {output.absolute().parent}")
    with spinner() as say:
        made = _made(old, new, output.absolute(), say)
    write_atomic(output.with_name(f"{output.name}.json"), made.description.to_json())
    if as_json:
        print_json(asdict(made))
        return
    print_table(
        ("what", "value", ""),
        [
            ("from", made.description.old, human_size(made.old.size)),
            ("to", made.description.new, human_size(made.new.size)),
            ("delta", output, human_size(made.description.size)),
            ("contents", f"{made.contents}", f"{made.differences} as differences"),
        ],
    )


def _made(old: str, new: str, output: Path, say: Callable[[str], None]) -> Made:
    from tegu.linux import run_isolated
    from tegu.release.delta import make_delta, open_tree
    from tegu.store import Store

    if Path(old).is_dir() and Path(new).is_dir():
        return make_delta(Path(old), Path(new), output, say=say)
    store = Store.default()

    def work(report: Callable[[Any], None]) -> Made:
        with (
            tempfile.TemporaryDirectory(prefix="tegu-delta-") as scratch,
            open_tree(old, store, Path(scratch)) as before,
            open_tree(new, store, Path(scratch)) as after,
        ):
            return make_delta(before, after, output, say=report)

    with store.shared():
        return run_isolated(work, on_event=say)
