"""`tegu tune`: settings with receipts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
_JSON = typer.Option(False, "--json", help="Print JSON.")
_Profile = Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name or file.")]


@app.callback()
def tune() -> None:
    """Settings with receipts: profiles applied, verified and undone, and proof that one helps."""


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


@app.command(epilog="Example: tegu tune show web")
def show(profile: _Profile, as_json: bool = _JSON) -> None:
    """Show a profile: each setting with its reason, source, and receipt or correctness."""
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
