"""`tegu tune`: settings of a running machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tegu.tune import Setting

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
_NAME = "tcp_tw_timeout"
_JSON = typer.Option(False, "--json", help="Print JSON.")


@app.callback()
def tune() -> None:
    """Settings of a running machine, on any kernel."""


@app.command("set", epilog="Example: tegu tune set tcp_tw_timeout=20 --netns all")
def set_value(
    assignment: str = typer.Argument(..., metavar="NAME=VALUE", help="tcp_tw_timeout=SECONDS"),
    netns: Annotated[
        list[str] | None,
        typer.Option(
            "--netns", metavar="NS", help="Also there: a name, a path, or all; repeatable."
        ),
    ] = None,
    as_json: bool = _JSON,
) -> None:
    """Set tcp_tw_timeout: how long closed connections stay in TIME-WAIT, 1 to 600 seconds.

    Kernels that have net.ipv4.tcp_tw_timeout do it themselves. On others a service ends sockets
    that are older (at most 60 seconds). RFC 793 keeps them for a reason: a late segment of the
    old connection must not be taken for one of a new connection between the same ports. Below 5
    seconds that becomes likely enough for a warning.
    """
    from tegu.errors import UsageError
    from tegu.tune import put

    match = re.fullmatch(r"([A-Za-z0-9_.]+)=(\d{1,6})s?", assignment)
    if match is None:
        raise UsageError(f"{assignment!r} is not NAME=SECONDS", hint=f"{_NAME}=20")
    _known(match[1])
    _show(put(int(match[2]), tuple(netns or ())), as_json)


@app.command("show", epilog="Example: tegu tune show --json")
def show(as_json: bool = _JSON) -> None:
    """Say how the settings stand."""
    from tegu.tune import current

    _show(current(), as_json)


@app.command("unset", epilog="Example: tegu tune unset tcp_tw_timeout")
def unset(
    name: str = typer.Argument(..., metavar="NAME", help="tcp_tw_timeout"), as_json: bool = _JSON
) -> None:
    """Go back to the kernel's default, now and after the next boot."""
    from tegu.tune import clear

    _known(name)
    _show(clear(), as_json)


@app.command("sweep", epilog="Example: tegu tune sweep --older-than 20 --once")
def sweep(
    older_than: float = typer.Option(0, min=0, max=60, help="Seconds; 0: as it is set."),
    netns: Annotated[
        list[str] | None, typer.Option("--netns", metavar="NS", help="Also there.")
    ] = None,
    once: bool = typer.Option(False, "--once", help="One sweep, then end."),
    as_json: bool = _JSON,
) -> None:
    """End sockets in TIME-WAIT that are old enough: what tegu-time-wait.service runs."""
    import json
    import signal
    import threading
    from dataclasses import asdict

    from tegu.errors import UsageError
    from tegu.tune import Swept, current, serve
    from tegu.tune import sweep as sweep_once
    from tegu.tune.timewait import namespaces

    setting = current()
    seconds = older_than or setting.seconds
    asked = tuple(netns or setting.namespaces)
    if not older_than and setting.by != "sweep":
        raise UsageError(f"{_NAME} is not set here", hint="--older-than SECONDS, or tegu tune set")

    def tell(swept: Swept) -> None:
        if as_json:
            print(json.dumps(asdict(swept)), flush=True)
        elif swept.ended or once:
            where = swept.namespace or "this namespace"
            print(f"{where}: {swept.ended} of {swept.seen} ended", flush=True)

    if once:
        for name in namespaces(asked):
            tell(sweep_once(seconds, name))
        return
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    serve(seconds, asked, stop, tell=tell)


def _known(name: str) -> None:
    from tegu.errors import UsageError

    if name not in (_NAME, f"net.ipv4.{_NAME}"):
        raise UsageError(f"there is no setting {name!r}", hint=f"there is {_NAME}")


def _show(setting: Setting, as_json: bool) -> None:
    from dataclasses import asdict

    from tegu.cli.output import note, print_json

    if as_json:
        print_json({"name": _NAME, **asdict(setting)})
    else:
        also = f", also in {', '.join(setting.namespaces)}" if setting.namespaces else ""
        print(f"{_NAME}={setting.seconds} (by the {setting.by}{also})")
    if setting.warning:
        note(setting.warning)
