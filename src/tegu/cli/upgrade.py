"""`tegu upgrade`, `tegu rollback`, `tegu history`: this machine's release, forwards and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli.output import note, print_json, print_table, spinner

if TYPE_CHECKING:
    from tegu.host.upgrade import Outcome, Update

__all__ = ["history_app", "rollback_app", "upgrade_app"]

upgrade_app = typer.Typer()
rollback_app = typer.Typer()
history_app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reboot = Annotated[bool, typer.Option("--reboot", help="Start the machine again afterwards.")]


@upgrade_app.command(epilog="Example: tegu upgrade --check; tegu upgrade --reboot")
def upgrade(
    check: Annotated[bool, typer.Option("--check", help="Only say what would change.")] = False,
    security: Annotated[
        bool, typer.Option("--security", help="Only what security suites bring.")
    ] = False,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="RELEASE", help="Follow this release or channel from now on."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="PLACE", help="Directory or URL of a slot image."),
    ] = None,
    snapshot: Annotated[
        bool, typer.Option("--snapshot/--no-snapshot", help="Keep a root to go back to.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish an upgrade that was interrupted.")
    ] = False,
    reboot: Reboot = False,
    as_json: Json = False,
) -> None:
    """Upgrade this machine, in a way that can be undone.

    The root is kept as it is, and boots again when the upgrade fails, when power is cut, or when
    the machine is not well after its next start. Kernels are left to apt. On the immutable layout
    the slot that does not run is written, with its kernel, and tried once.
    """
    from tegu.host.upgrade import preview
    from tegu.host.upgrade import upgrade as run_upgrade

    with spinner() as say:
        if check:
            updates = preview(security=security, to=to, source=source, say=say)
            if as_json:
                print_json([asdict(u) | {"security": u.security} for u in updates])
            else:
                _table(updates)
            return
        done = run_upgrade(
            security=security, to=to, source=source, snapshot=snapshot, resume=resume, say=say
        )
    _report(done, as_json)
    _restart(reboot and done.reboot)


@rollback_app.command(epilog="Example: tegu rollback --reboot")
def rollback(reboot: Reboot = False, as_json: Json = False) -> None:
    """Go back to what this machine was before its last upgrade, by its next start.

    What was written to /home, /root, /srv, /var/log and the directories named in
    /etc/tegu/upgrade.toml since then comes along.
    """
    from tegu.host.upgrade import roll_back

    with spinner() as say:
        done = roll_back(say)
    _report(done, as_json)
    _restart(reboot)


@history_app.command(epilog="Example: tegu history")
def history(as_json: Json = False) -> None:
    """List the upgrades of this machine, and what came of them."""
    from datetime import UTC, datetime

    from tegu.host.upgrade import history as read_history

    events = read_history()
    if as_json:
        print_json([asdict(e) for e in events])
        return
    print_table(
        ("when", "upgrade", "what", "release", "detail"),
        [
            (f"{datetime.fromtimestamp(e.at, UTC):%Y-%m-%d %H:%M:%S}", e.id, e.what, e.release,
             e.detail)
            for e in events
        ],
    )  # fmt: skip


def _table(updates: list[Update]) -> None:
    print_table(
        ("package", "now", "then", "from", "kind"),
        [(u.name, u.old, u.new, u.origin, "security" if u.security else "") for u in updates],
    )


def _report(done: Outcome, as_json: bool) -> None:
    if as_json:
        print_json(asdict(done))
        return
    _table(list(done.updates))
    if done.kernels:
        names = " ".join(u.name for u in done.kernels)
        note(f"kernels are left to apt: apt-get install {names}")
    words = {
        "current": "everything is current",
        "trial": "installed; the next start of the machine tries it",
        "failed": f"the next start goes back to {done.release}",
        "done": "installed",
    }
    print(words.get(done.status, done.status))


def _restart(wanted: bool) -> None:
    if wanted:
        from tegu.process import run

        run(["systemctl", "--no-block", "reboot"], timeout=60)
