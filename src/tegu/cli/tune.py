"""`tegu tune`: settings of a running machine, one on any kernel, and profiles with receipts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tegu.tune import TimeWait

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
_NAME = "tcp_tw_timeout"
_JSON = typer.Option(False, "--json", help="Print JSON.")
_Profile = Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name or file.")]


@app.callback()
def tune() -> None:
    """Settings of a running machine: on any kernel, and profiles with receipts."""


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


@app.command("show", epilog="Example: tegu tune show web")
def show(
    profile: Annotated[str | None, typer.Argument(help="A profile's name or file.")] = None,
    as_json: bool = _JSON,
) -> None:
    """Show a profile, each setting with its reason and proof; without one, what `set` has set."""
    from tegu.tune import current

    if profile is None:
        _show(current(), as_json)
    else:
        _show_profile(profile, as_json)


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


@app.command("list", epilog="Example: tegu tune list")
def list_profiles(as_json: bool = _JSON) -> None:
    """List the profiles there are."""
    from tegu.cli.output import print_json, print_table
    from tegu.tune import find_profile, load_profile, profile_names

    found = [load_profile(find_profile(n)) for n in profile_names()]
    if as_json:
        print_json([{"name": p.name, "about": p.about, "settings": len(p.settings)} for p in found])
        return
    print_table(("profile", "settings", "for"), [(p.name, len(p.settings), p.about) for p in found])


@app.command(epilog="Example: sudo tegu tune apply web")
def apply(profile: _Profile, as_json: bool = _JSON) -> None:
    """Apply a profile, now and for each boot. What others have set is reported and left alone."""
    from dataclasses import asdict

    from tegu.cli.output import note, print_json
    from tegu.tune import Machine, find_profile, load_profile
    from tegu.tune import apply as do

    done = do(load_profile(find_profile(profile)), Machine())
    if as_json:
        print_json(asdict(done))
        return
    print(f"{len(done.written)} written, {len(done.kept)} were so already")
    for words in done.written:
        print(f"  {words}")
    for words in done.conflicts:
        note(f"left alone: {words}")
    for words in done.refused:
        note(f"not set: {words}")


@app.command(epilog="Example: tegu tune diff web")
def diff(profile: _Profile, as_json: bool = _JSON) -> None:
    """Show where this machine differs from a profile, and who set it so."""
    _compare(profile, as_json, strict=False)


@app.command(epilog="Example: tegu tune verify web")
def verify(profile: _Profile, as_json: bool = _JSON) -> None:
    """As diff, and fail when something differs."""
    _compare(profile, as_json, strict=True)


def _compare(profile: str, as_json: bool, *, strict: bool) -> None:
    from tegu.cli.output import print_json, print_table
    from tegu.errors import TuneError
    from tegu.tune import Machine, find_profile, load_profile, look

    found = look(load_profile(find_profile(profile)), Machine())
    other = [f for f in found if not f.holds]
    rows = [
        (f.setting.name, f.target, "none" if f.now is None else f.now, f.setting.value, f.conflict)
        for f in other
    ]
    if as_json:
        keys = ("setting", "target", "now", "profile", "conflict")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        print_table(("setting", "where", "is", "profile", "set by"), rows)
    if strict and other:
        if as_json:
            raise typer.Exit(TuneError.exit_code)  # one JSON document, not two
        raise TuneError(f"{len(other)} of {len(found)} settings differ from {profile}")


@app.command(epilog="Example: sudo tegu tune undo")
def undo(
    force: bool = typer.Option(False, "--force", help="Also what others have changed since."),
    as_json: bool = _JSON,
) -> None:
    """Restore every former value and remove the files that were added."""
    from dataclasses import asdict

    from tegu.cli.output import note, print_json
    from tegu.errors import TuneError
    from tegu.tune import Machine
    from tegu.tune import undo as do

    done = do(Machine(), force=force)
    if as_json:
        print_json(asdict(done))
    else:
        print(f"{len(done.restored)} restored, {len(done.gone)} gone meanwhile")
    for words in done.conflicts:
        note(f"left alone: {words}")
    if done.failed:
        raise TuneError(f"not restored: {'; '.join(done.failed)}", hint="run it again")


@app.command(
    epilog="Example: tegu tune prove sysctl:net.ipv4.tcp_slow_start_after_idle=0 -- ./transfer",
    context_settings={"ignore_unknown_options": True},
)
def prove(
    setting: Annotated[str, typer.Argument(metavar="KIND:KEY=VALUE")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")],
    pairs: int = typer.Option(3, min=3, help="How many pairs of runs."),
    better: str = typer.Option("lower", help="lower or higher: which metric is better."),
    name: str = typer.Option("", "--name", help="What the workload is, for the receipt."),
    receipt: str = typer.Option("", "--receipt", metavar="FILE", help="Write the receipt here."),
    as_json: bool = _JSON,
) -> None:
    """Measure a setting ABAB; keep it only if the gain is real. The former value comes back.

    COMMAND prints, as its last line, {"metric": number, "guards": {"name": number}}.
    """
    from tegu.cli.output import print_json, print_table, spinner
    from tegu.errors import TuneError, UsageError
    from tegu.files import write_atomic
    from tegu.tune import Machine, Setting, workload
    from tegu.tune import prove as do
    from tegu.tune.apply import targets
    from tegu.tune.prove import receipt as written

    kind, colon, rest = setting.partition(":")
    key, equals, value = rest.partition("=")
    if not colon or not equals or kind not in ("sysctl", "sysfs") or not value:
        raise UsageError(f"{setting!r} must be sysctl:KEY=VALUE or sysfs:PATH=VALUE")
    if better not in ("lower", "higher"):
        raise UsageError(f"--better: {better!r} is neither lower nor higher")
    tried = Setting(kind, key, value, "on trial", "")
    with spinner() as say:
        proof = do(
            tried,
            targets(tried, Machine())[0],
            workload(command),
            pairs=pairs,
            better="lower" if better == "lower" else "higher",
            name=name,
            say=say,
        )
    if receipt and proof.kept:
        write_atomic(Path(receipt), written(proof, command))
    if as_json:
        print_json(proof.to_json())
    else:
        rows: list[tuple[str, object]] = [
            ("gain", f"{proof.gain:.1%}"),
            ("noise of A", f"{proof.noise:.1%}"),
            ("A", ", ".join(f"{v:g}" for v in proof.a)),
            ("B", ", ".join(f"{v:g}" for v in proof.b)),
            *((f"guard {n}", f"{w:+.1%}") for n, w in proof.guards.items()),
        ]
        print_table(("what", "is"), rows)
    if not proof.kept:
        if as_json:
            raise typer.Exit(TuneError.exit_code)
        raise TuneError(f"not kept: {proof.why}")


def _show_profile(profile: str, as_json: bool) -> None:
    from dataclasses import asdict

    from tegu.cli.output import print_json, print_table
    from tegu.tune import find_profile, load_profile

    settings = load_profile(find_profile(profile)).settings.values()
    if as_json:
        print_json([asdict(s) for s in settings])
        return
    rows = []
    for s in settings:
        proof = s.correctness
        if s.receipt is not None:
            proof = f"{s.receipt.gain:.0%} (noise {s.receipt.noise:.0%}): {s.receipt.workload}"
        rows.append((s.name, s.value, s.reason, proof, s.source))
    print_table(("setting", "value", "reason", "receipt or correctness", "source"), rows)


def _known(name: str) -> None:
    from tegu.errors import UsageError

    if name not in (_NAME, f"net.ipv4.{_NAME}"):
        raise UsageError(f"there is no setting {name!r}", hint=f"there is {_NAME}")


def _show(setting: TimeWait, as_json: bool) -> None:
    from dataclasses import asdict

    from tegu.cli.output import note, print_json

    if as_json:
        print_json({"name": _NAME, **asdict(setting)})
    else:
        also = f", also in {', '.join(setting.namespaces)}" if setting.namespaces else ""
        print(f"{_NAME}={setting.seconds} (by the {setting.by}{also})")
    if setting.warning:
        note(setting.warning)
