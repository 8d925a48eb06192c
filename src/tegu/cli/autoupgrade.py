"""`tegu autoupgrade`: when this machine upgrades itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli.output import print_json, print_table

if TYPE_CHECKING:
    from tegu.host.upgrade.schedule import Schedule

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(epilog="Example: tegu autoupgrade on --window 'Sun 02:00' --length 3h --reboot")
def autoupgrade() -> None:
    """Let this machine upgrade itself in a window, at a moment of its own."""


@app.command(epilog="Example: tegu autoupgrade on --window 'Sun 02:00' --length 3h --reboot")
def on(
    window: Annotated[
        str, typer.Option(help="When the window opens, as systemd.time(7) has it.")
    ] = "*-*-* 03:00",
    length: Annotated[str, typer.Option(help="How long it is: 90min, 3h.")] = "2h",
    security: Annotated[
        bool, typer.Option("--security", help="Only what security suites bring.")
    ] = False,
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Start the machine again where that is needed.")
    ] = False,
    snapshot: Annotated[
        bool, typer.Option("--snapshot/--no-snapshot", help="Keep a root to go back to.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Upgrade in a window from now on, as `tegu upgrade` does.

    Each machine begins at another moment of the window, always the same, which its machine id
    decides. Packages that are held or pinned in apt stay, and a roll-out in steps
    (`tegu repo rollout`) waits for this machine's turn.
    """
    from tegu.host.upgrade.schedule import Schedule, turn_on

    wanted = Schedule(window, length, security, reboot, snapshot)
    _show(turn_on(wanted), as_json)


@app.command(epilog="Example: tegu autoupgrade off")
def off(as_json: Json = False) -> None:
    """Leave upgrades to a person again."""
    from tegu.host.upgrade.schedule import turn_off

    turn_off()
    _show(None, as_json)


@app.command(epilog="Example: tegu autoupgrade status --json")
def status(as_json: Json = False) -> None:
    """Say when this machine upgrades itself."""
    from tegu.host.upgrade.schedule import read_schedule

    _show(read_schedule(), as_json)


def _show(schedule: Schedule | None, as_json: bool) -> None:
    if as_json:
        print_json({"on": schedule is not None, **(asdict(schedule) if schedule else {})})
        return
    if schedule is None:
        print("off")
        return
    yes = {True: "yes", False: "no"}
    print_table(
        ("window", "length", "security only", "restarts", "undoable", "next"),
        [
            (
                schedule.window,
                schedule.length,
                yes[schedule.security],
                yes[schedule.reboot],
                yes[schedule.snapshot],
                schedule.next,
            )
        ],
    )
