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
_STATE = Annotated[
    Path | None, typer.Option("--state", metavar="FILE", help="Another file of what it saw last.")
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
    closer: bool = typer.Option(
        True, help="Where tasks wait a lot, let a probe look for 3 s, at most once in 5 minutes."
    ),
    database: _DATABASE = None,
    state: _STATE = None,
) -> None:
    """Look again and again, sooner under pressure; keep what is found; until interrupted.

    Repairs by itself only what `automatic` in /etc/tegu/heal.toml names.
    """
    from tegu.heal.agent import run_agent
    from tegu.heal.history import HISTORY
    from tegu.heal.state import STATE

    run_agent(every, database or HISTORY, state or STATE, closer=closer)


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


@app.command(epilog="Example: tegu agent export --otlp http://127.0.0.1:4318")
def export(
    listen: str = typer.Option(
        "127.0.0.1:9559", metavar="HOST:PORT", help="Where Prometheus asks; empty: nowhere."
    ),
    otlp: str = typer.Option(
        "", metavar="URL", help="An OpenTelemetry collector to send to as well (OTLP over HTTP)."
    ),
    every: float = typer.Option(30.0, min=1, max=3600, help="Seconds between two sendings."),
    once: bool = typer.Option(False, "--once", help="Print the metrics for Prometheus and end."),
    state: _STATE = None,
    as_json: bool = typer.Option(False, "--json", help="Print the metrics as JSON and end."),
) -> None:
    """Offer what the agent sees to Prometheus and OpenTelemetry, until interrupted.

    Health and what it is made of, findings by rule, repairs, pressure. Reads what the agent leaves
    in /run/tegu, as root; without an agent the metrics say only that it is not up. Needs Debian's
    python3-prometheus-client, and for --otlp OpenTelemetry's own library.
    """
    import contextlib
    import signal
    import threading

    from tegu.cli.output import note, print_json
    from tegu.errors import UsageError
    from tegu.heal.state import STATE, read_state

    path = state or STATE
    seen = read_state(path)  # a state that may not be read is told at once
    if as_json:
        from tegu.heal.metrics import METRICS, samples

        print_json(
            {
                name: [{**dict(zip(METRICS[name].labels, s.labels, strict=True)), "value": s.value}
                       for s in found]
                for name, found in samples(seen).items()
            }
        )  # fmt: skip
        return
    if once:
        from tegu.heal.exporter import exposition

        print(exposition(path), end="")
        return
    if not listen and not otlp:
        raise UsageError("there is nothing to do", hint="give --listen, --otlp or --once")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        if listen:
            from tegu.heal.exporter import endpoint

            port = stack.enter_context(endpoint(listen, path, note))
            print(f"metrics at http://{listen.rpartition(':')[0]}:{port}/metrics", flush=True)
        if otlp:
            from tegu.heal.otlp import pushing

            stack.enter_context(pushing(otlp, path, every))
            print(f"sending to {otlp} every {every:g} s", flush=True)
        stop.wait()
