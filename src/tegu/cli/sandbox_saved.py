"""`tegu sandbox snapshot` and its kin: microVMs saved, restored and forked."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Give `tegu sandbox` the verbs of this module."""
    for name, verb, example in (
        ("snapshot", snapshot, "tegu sandbox snapshot b1-0a1b2c ready"),
        ("snapshots", snapshots, "tegu sandbox snapshots --json"),
        ("restore", restore, "tegu sandbox restore ready --timeout 600"),
        ("fork", fork, "tegu sandbox fork b1-0a1b2c --count 3"),
        ("forget", forget, "tegu sandbox forget ready"),
    ):
        app.command(name, epilog=f"Example: {example}")(verb)


def snapshot(
    box: Annotated[str, typer.Argument(metavar="BOX")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
) -> None:
    """Save the memory and disk of a microVM under a name; it goes on."""
    from tegu.sandbox.client import supervisor

    supervisor("snapshot", box=box, name=name)


def snapshots(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List what is saved."""
    import time

    from tegu.cli.output import human_size, print_json, print_table
    from tegu.sandbox.client import supervisor

    found = supervisor("snapshots", start=True)
    if as_json:
        print_json(found)
        return
    print_table(
        ("snapshot", "class", "template", "saved", "on disk"),
        [
            (s["name"], "", "", "", s["error"])
            if "error" in s
            else (
                s["name"],
                s["kind"],
                s["template"],
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(s["created"])),
                human_size(s["bytes"]),
            )
            for s in found
        ],
    )


def restore(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    hostname: str = typer.Option("box", help="The new box's host name."),
    timeout: float = typer.Option(None, metavar="S", help="Seconds that it lives at most."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Start a box that goes on from a snapshot, with an identity of its own; prints its name."""
    _started(name, 1, hostname, timeout, as_json=as_json)


def fork(
    box: Annotated[str, typer.Argument(metavar="BOX")],
    count: int = typer.Option(1, min=1, max=256, help="How many."),
    timeout: float = typer.Option(None, metavar="S", help="Seconds that each lives at most."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Start boxes that go on from where a running microVM is; prints their names."""
    import secrets

    from tegu.sandbox.client import supervisor

    name = f"fork-{secrets.token_hex(8)}"
    supervisor("snapshot", box=box, name=name)
    try:
        _started(name, count, "box", timeout, as_json=as_json)
    finally:
        supervisor("forget", name=name)


def forget(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Remove snapshots; boxes that were restored from them live on."""
    from tegu.sandbox.client import supervisor

    for name in names:
        supervisor("forget", name=name, start=True)


def _started(
    snapshot: str, count: int, hostname: str, timeout: float | None, *, as_json: bool
) -> None:
    from tegu.cli.output import print_json
    from tegu.sandbox.client import Sandbox

    made = [
        Sandbox.create(snapshot=snapshot, hostname=hostname, timeout=timeout, keep=True)
        for _ in range(count)
    ]
    if as_json:
        print_json([box.info() for box in made])
    else:
        for box in made:
            print(box.name)
