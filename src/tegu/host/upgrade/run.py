"""An upgrade by packages from its beginning to the boot that proves it, and the way back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tegu.errors import TeguError, UnsupportedError, UpgradeError
from tegu.host.upgrade import apt, health
from tegu.host.upgrade.carry import carry, data_paths
from tegu.host.upgrade.outcome import Outcome
from tegu.host.upgrade.roots import ROOTS, Roots, opened
from tegu.host.upgrade.state import Event, State, note, read_state, write_state
from tegu.process import run

__all__ = ["Outcome", "boot_begins", "boot_proved", "preview", "roll_back", "upgrade"]

Say = Callable[[str], None]
_FREE = 512 << 20  # bytes that must be free: a snapshot shares the rest


def preview(*, security: bool = False, say: Say = lambda _: None) -> list[apt.Update]:
    """Return what an upgrade would change, by fresh indexes."""
    say("fetching indexes")
    apt.refresh()
    return apt.available(security=security)


def upgrade(
    *,
    security: bool = False,
    to: str | None = None,
    snapshot: bool = True,
    resume: bool = False,
    say: Say = lambda _: None,
) -> Outcome:
    """Bring the machine to the newest versions of what it follows, or of the release `to`.

    Raises UpgradeError when it fails: the machine then goes back by its next boot (with
    `snapshot`), and UnsupportedError where the root cannot be gone back to.
    """
    data_paths()  # a wrong configuration is found now rather than on the way back
    if not snapshot:
        return _in_place(security, to, say)
    with opened() as roots:
        before = read_state()
        if before is not None and before.status in ("upgrading", "failed") and not resume:
            raise UpgradeError(
                f"the upgrade {before.id} did not end well: {before.reason or 'interrupted'}",
                hint="reboot to be what the machine was, or finish it with --resume",
            )
        if before is not None and before.status in ("trial", "trying"):
            raise UpgradeError(
                f"the upgrade {before.id} has not proved itself yet", hint="reboot first"
            )
        if before is None or before.status not in ("upgrading", "failed"):
            if wrong := health.problems(wait=False):
                say(f"not well before the upgrade: {'; '.join(wrong)}")
            before = _begin(roots, security, to, say)
            if before is None:
                kernels = tuple(u for u in apt.available() if u.kernel)
                return Outcome("", "current", _release(), (), kernels, reboot=False)
        return _change(roots, before, security, to, say)


def _begin(roots: Roots, security: bool, to: str | None, say: Say) -> State | None:
    """Keep the root as it is, and make what is kept boot next."""
    if to is None:
        say("fetching indexes")
        apt.refresh()
        if not [u for u in apt.available(security=security) if not u.kernel]:
            return None
    _room(roots)
    number = first = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for more in itertools.count(1):
        if not roots.path(f"{ROOTS}/{number}").exists():
            break
        number = f"{first}.{more}"
    for name in roots.names():
        # One way back is kept: the newest. The top of the file system cannot be removed.
        if name and name not in (roots.current, roots.default()):
            roots.drop(name)
    state = State(
        id=number,
        status="upgrading",
        live=roots.current,
        kept=f"{ROOTS}/{number}",
        release=_release(),
        failed_before=tuple(health.failed_units()),
        settings=health.effective_settings(),
    )
    say("keeping the root as it is")
    write_state(state)
    _note(state, "began")
    roots.snapshot(state.kept)
    roots.set_default(state.kept)
    return state


def _change(roots: Roots, state: State, security: bool, to: str | None, say: Say) -> Outcome:
    try:
        if to is not None:
            apt.follow(to)
            say("fetching indexes")
            apt.refresh()
        found = apt.available(security=security)
        kernels = tuple(u for u in found if u.kernel)
        updates = tuple(u for u in found if not u.kernel)
        say(f"installing {len(updates)} packages")
        if updates:
            apt.install(updates)
        wrong = health.problems(state.failed_before, wait=False)
        if wrong:
            raise UpgradeError("; ".join(wrong))
    except (TeguError, OSError) as e:
        reason = e.message if isinstance(e, TeguError) else str(e)
        write_state(replace(state, status="failed", reason=reason))
        _note(state, "failed", reason)
        raise UpgradeError(
            f"the upgrade failed: {reason}",
            hint=f"reboot: the machine will be {state.release} again, as it was before",
        ) from e
    packages = {u.name: (u.old, u.new) for u in updates}
    trial = replace(state, status="trial", packages=packages, reason="")
    write_state(trial)
    _note(trial, "installed", f"{len(updates)} packages")
    roots.sync()
    roots.set_default(state.live)
    return Outcome(trial.id, "trial", _release(), updates, kernels, reboot=True)


def _in_place(security: bool, to: str | None, say: Say) -> Outcome:
    if to is not None:
        apt.follow(to)
    say("fetching indexes")
    apt.refresh()
    found = apt.available(security=security)
    updates = tuple(u for u in found if not u.kernel)
    kernels = tuple(u for u in found if u.kernel)
    if not updates:
        return Outcome("", "current", _release(), (), kernels, reboot=False)
    before = tuple(health.failed_units())
    apt.install(updates)
    if wrong := health.problems(before, wait=False):
        raise UpgradeError(
            f"after the upgrade: {'; '.join(wrong)}", hint="there is no snapshot to go back to"
        )
    number = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    note(Event(int(time.time()), number, "installed in place", _release(), f"{len(updates)}"))
    needed = Path("/run/reboot-required").exists()
    return Outcome(number, "done", _release(), updates, kernels, reboot=needed)


def boot_begins() -> str:
    """Do what an early boot has to do for an upgrade; returns what it was.

    In the upgraded root on trial: hand the default to the snapshot, so that a boot that does not
    get through is not repeated. In the snapshot: this is a way back; bring data along.
    """
    state = read_state()
    if state is None:
        return "nothing"
    with opened() as roots:
        if roots.current == state.kept and state.status == "upgrading":
            return _arrived_back(roots, state)
        if roots.current == state.live and state.status == "trial":
            roots.set_default(state.kept)
            write_state(replace(state, status="trying"))
            _note(state, "trying")
            return "trying"
        if roots.current == state.live and state.status == "upgrading":
            # The snapshot was not yet what boots, so apt had not begun.
            reason = "cut before anything was changed"
            write_state(replace(state, status="rolled-back", reason=reason))
            _note(state, "rolled back", reason)
            return "rolled-back"
        if roots.current == state.live and state.status == "trying":
            # It was started again by hand, before it had proved well: still on trial.
            return "trying"
    return "nothing"


def _arrived_back(roots: Roots, state: State) -> str:
    left = read_state(roots.path(state.live))
    reason = left.reason if left is not None and left.reason else "it did not come up, or was cut"
    done = carry(roots.path(state.live), Path("/"), data_paths())
    write_state(replace(state, status="rolled-back", reason=reason))
    _note(state, "rolled back", f"{reason}; brought along: {' '.join(done) or 'nothing'}")
    roots.set_default(state.kept)
    return "rolled-back"


def boot_proved(*, reboot: bool = True) -> str:
    """Judge an upgrade on trial once the machine is up; returns what it is now.

    When it is not well the machine is started again (unless `reboot` is False), into what it was.
    """
    state = read_state()
    if state is None or state.status != "trying":
        return "nothing"
    wrong = health.problems(state.failed_before)
    if wrong:
        reason = "; ".join(wrong)
        write_state(replace(state, status="failed", reason=reason))
        _note(state, "not well", reason)
        if reboot:
            run(["systemctl", "--no-block", "reboot"], timeout=60)
        return "failed"
    with opened() as roots:
        roots.set_default(state.live)
    write_state(replace(state, status="done"))
    lost = health.changed_settings(state.settings, health.effective_settings())
    _note(state, "done", f"settings that changed: {'; '.join(lost)}" if lost else "")
    return "done"


def roll_back(say: Say = lambda _: None) -> Outcome:
    """Make the machine boot what it was before its last upgrade."""
    with opened() as roots:
        state = read_state()
        if state is None or not roots.path(state.kept).is_dir() or roots.current == state.kept:
            raise UpgradeError("there is no upgrade to go back from", hint="see `tegu history`")
        say("going back by the next boot")
        roots.set_default(state.kept)
        reason = "by hand"
        write_state(replace(state, status="failed", reason=reason))
        _note(state, "going back", reason)
    return Outcome(state.id, "failed", state.release, (), (), reboot=True)


def _room(roots: Roots) -> None:
    import os

    info = os.statvfs(roots.top)
    free = info.f_bavail * info.f_frsize
    if free < _FREE:
        raise UpgradeError(
            f"{free >> 20} MiB are free on the root, an upgrade needs {_FREE >> 20}",
            hint="nothing was changed",
        )


def _release() -> str:
    """Return the machine's release, from os-release(5)."""
    for name in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            lines = Path(name).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("VERSION_ID="):
                return line.partition("=")[2].strip("\"'")
    raise UnsupportedError("this system has no os-release")


def _note(state: State, what: str, detail: str = "") -> None:
    note(Event(int(time.time()), state.id, what, _release(), detail))
