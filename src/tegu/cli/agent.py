"""`tegu agent`: the resident doctor, and what it has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
_UNIT = "tegu-agent.service"
_WANTED = Path("/etc/systemd/system/multi-user.target.wants") / _UNIT
_DATABASE = Annotated[
    Path | None, typer.Option("--database", metavar="FILE", help="Another history.")
]


@app.callback()
def agent() -> None:
    """The resident doctor: looks again and again, and keeps what it finds."""


@app.command(epilog="Example: tegu agent on")
def on() -> None:
    """Start it, now and at each boot."""
    from tegu.process import run as run_program

    run_program(["systemctl", "--quiet", "add-wants", "multi-user.target", _UNIT], timeout=60)
    run_program(["systemctl", "start", _UNIT], timeout=60)
    print("on")


@app.command(epilog="Example: tegu agent off")
def off() -> None:
    """Stop it, now and at each boot; the history stays."""
    from tegu.process import run as run_program

    _WANTED.unlink(missing_ok=True)
    run_program(["systemctl", "daemon-reload"], timeout=60)
    run_program(["systemctl", "stop", _UNIT], timeout=60)
    print("off")


@app.command(epilog="Example: tegu agent run --every 5")
def run(
    every: float = typer.Option(15.0, min=2, max=3600, help="Seconds between looks."),
    database: _DATABASE = None,
) -> None:
    """Look again and again, sooner under pressure; keep what is found; until interrupted.

    Repairs by itself only what `automatic` in /etc/tegu/heal.toml names.
    """
    from tegu.heal.agent import run_agent
    from tegu.heal.history import HISTORY

    run_agent(every, database or HISTORY)


@app.command(epilog="Example: tegu agent history --top 20")
def history(
    top: int = typer.Option(50, min=1, max=5000, help="At most this many findings."),
    database: _DATABASE = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show what was found when, the newest first."""
    import time

    from tegu.cli.output import print_json, print_table
    from tegu.heal.history import HISTORY, History

    base = History(database or HISTORY, create=False)
    try:
        found = base.findings(top)
    finally:
        base.close()
    if as_json:
        print_json(found)
        return

    def when(at: float | None) -> str:
        return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))

    print_table(
        ("began", "ended", "severity", "finding"),
        [(when(f["began"]), when(f["ended"]), f["severity"], f["title"]) for f in found],
    )
