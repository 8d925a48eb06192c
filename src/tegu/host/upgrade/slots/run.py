"""An upgrade of the other slot from its beginning to the boot that proves it, and the way back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tegu.boot.slots import BootName, SlotImage, verity_of
from tegu.boot.uki import section_data
from tegu.errors import TeguError, UpgradeError, VerifyError
from tegu.host.esp import write_file
from tegu.host.upgrade import health
from tegu.host.upgrade.apt import Update
from tegu.host.upgrade.outcome import Outcome
from tegu.host.upgrade.slots.machine import SlotMachine
from tegu.host.upgrade.slots.settle import add_accounts, bring_directories, image_view
from tegu.host.upgrade.slots.source import Source
from tegu.host.upgrade.slots.writing import read_boot, write_slot
from tegu.host.upgrade.state import Event, State, note, read_state, write_state
from tegu.process import run

__all__ = ["begin", "prove", "roll_back", "upgrade", "waiting"]

Say = Callable[[str], None]


def waiting(machine: SlotMachine, source: Source, to: str | None = None) -> SlotImage | None:
    """Return what `source` has, None when that is what runs. Raises as `upgrade` does."""
    image = source.describe()
    places = machine.places
    if (image.name, image.architecture) != (places.name, places.architecture):
        raise UpgradeError(
            f"{source.where} has {image.name} for {image.architecture},"
            f" this is {places.name} for {places.architecture}"
        )
    if to is not None and image.version != to:
        raise UpgradeError(f"{source.where} has {image.version}, not {to}")
    if image.verity == machine.running:
        return None
    if to is None and image.created < places.created:
        raise UpgradeError(
            f"{source.where} has {image.version}, which is older than what runs",
            hint=f"--to {image.version} takes it all the same",
        )
    return image


def upgrade(
    machine: SlotMachine, source: Source, *, to: str | None = None, say: Say = lambda _: None
) -> Outcome:
    """Write what `source` has to the other slot, and have the next boot try it once.

    Raises UpgradeError, FetchError or VerifyError when it cannot be; the machine then goes on with
    what it runs, and so it does after a cut at any moment.
    """
    before = read_state(machine.root)
    if before is not None and before.status in ("trial", "trying") and not before.reason:
        raise UpgradeError(
            f"the upgrade {before.id} has not proved itself yet", hint="reboot first"
        )
    image = waiting(machine, source, to)
    if image is None:
        return Outcome("", "current", machine.places.version, (), (), reboot=False)
    if (
        to is None
        and before is not None
        and before.status == "rolled-back"
        and before.image == image.verity.root_hash
    ):
        raise UpgradeError(
            f"{image.version} was tried and left behind: {before.reason}",
            hint=f"--to {image.version} tries it once more",
        )
    boot = _boot_file(image, source)
    state = State(
        id=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        status="upgrading",
        live=machine.other,
        kept=machine.current,
        release=machine.places.version,
        failed_before=tuple(health.failed_units()),
        settings=health.effective_settings(),
    )
    write_state(state, machine.root)
    _note(machine, state, "began", f"{image.version} to slot {state.live}")
    try:
        generation = _release_slot(machine)
        write_slot(image, source, *machine.devices(state.live), say)
        updates = updates_of(image, machine.root)
        packages = {u.name: (u.old, u.new) for u in updates}
        state = replace(state, status="trial", packages=packages, image=image.verity.root_hash)
        write_state(state, machine.root)
        with machine.esp() as esp:
            write_file(esp, BootName(image.name, generation, image.version, 1).path, boot)
    except (TeguError, OSError) as e:
        reason = e.message if isinstance(e, TeguError) else str(e)
        write_state(replace(state, status="failed", reason=reason, image=""), machine.root)
        _note(machine, state, "failed", reason)
        raise
    _note(machine, state, "installed", f"{image.version} in slot {state.live}")
    return Outcome(state.id, "trial", image.version, tuple(updates), (), reboot=True)


def _boot_file(image: SlotImage, source: Source) -> bytes:
    """Return the unified image, which must start the root that the description names."""
    data = read_boot(image, source)
    line = section_data(data, ".cmdline") or b""
    if verity_of(line.decode(errors="replace").rstrip("\0")) != image.verity:
        raise VerifyError(f"the boot file of {image.version} starts another root")
    return data


def _release_slot(machine: SlotMachine) -> int:
    """Take away the boot files of the other slot; returns the next generation."""
    with machine.esp() as esp:
        files = machine.boot_files(esp)
        own = machine.own(files)
        if own.name.left is not None:
            own.renamed(own.name.counted(None))  # what runs and proved well before must come back
        for file in machine.others(files):
            file.remove()
        return max(f.name.generation for f in files) + 1


def updates_of(image: SlotImage, root: Path = Path("/")) -> list[Update]:
    """Return the packages that differ between what runs and `image`, by name."""
    here = _installed(root / "var/lib/dpkg/status")
    names = sorted(set(here) | set(image.packages))
    return [
        Update(name, here.get(name, ""), image.packages.get(name, ""), "")
        for name in names
        if here.get(name) != image.packages.get(name)
    ]


def _installed(status: Path) -> dict[str, str]:
    found = {}
    try:
        text = status.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " "
        )
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found


def begin(machine: SlotMachine) -> str:
    """Do what an early boot has to do for an upgrade; returns what it was."""
    state = read_state(machine.root)
    if state is None:
        return "nothing"
    if machine.current == state.live and state.status in ("trial", "trying") and not state.reason:
        if state.status == "trial":
            detail = _settle(machine)
            write_state(replace(state, status="trying"), machine.root)
            _note(machine, state, "trying", detail)
        return "trying"
    if machine.current == state.kept and state.status in ("upgrading", "trial", "trying"):
        return _arrived_back(machine, state)
    if machine.current == state.live and state.reason:
        # It was to go back, and the other slot did not come up.
        with machine.esp() as esp:
            own = machine.own(machine.boot_files(esp))
            own.renamed(own.name.counted(None))
        write_state(replace(state, status="done", reason=""), machine.root)
        _note(machine, state, "stayed", f"slot {state.kept} did not come up")
        return "done"
    return "nothing"


def _settle(machine: SlotMachine) -> str:
    with image_view(machine.root) as image:
        made = bring_directories(image / "var", machine.root / "var")
        accounts = add_accounts(image / "etc", machine.root / "etc")
    parts = [f"new in /var: {' '.join(made)}"] if made else []
    return "; ".join([*parts, *accounts])


def _arrived_back(machine: SlotMachine, state: State) -> str:
    reason = state.reason
    image = state.image
    if not reason and state.status == "upgrading":
        reason, image = "cut while the other slot was written", ""
    elif not reason and state.status == "trial":
        with machine.esp() as esp:
            there = machine.others(machine.boot_files(esp))
        if there and there[0].name.left == 0:
            reason = "it did not come up"
        else:
            reason, image = "it was not started", ""
    write_state(
        replace(state, status="rolled-back", reason=reason or "it did not come up", image=image),
        machine.root,
    )
    _note(machine, state, "rolled back", reason or "it did not come up")
    return "rolled-back"


def prove(machine: SlotMachine, *, reboot: bool = True) -> str:
    """Judge an upgrade on trial once the machine is up; returns what it is now.

    When it is not well the machine is started again (unless `reboot` is False): the boot loader has
    counted the try, and starts the other slot.
    """
    state = read_state(machine.root)
    if state is None or state.status != "trying" or machine.current != state.live or state.reason:
        return "nothing"
    wrong = health.problems(state.failed_before)
    if wrong:
        reason = "; ".join(wrong)
        write_state(replace(state, reason=reason), machine.root)
        _note(machine, state, "not well", reason)
        with machine.esp() as esp:
            own = machine.own(machine.boot_files(esp))
            if own.name.left != 0:  # a boot loader that does not count
                own.renamed(own.name.counted(0))
        if reboot:
            run(["systemctl", "--no-block", "reboot"], timeout=60)
        return "failed"
    with machine.esp() as esp:
        own = machine.own(machine.boot_files(esp))
        own.renamed(own.name.counted(None))
    write_state(replace(state, status="done"), machine.root)
    lost = health.changed_settings(state.settings, health.effective_settings())
    _note(machine, state, "done", f"settings that changed: {'; '.join(lost)}" if lost else "")
    return "done"


def roll_back(machine: SlotMachine, say: Say = lambda _: None) -> Outcome:
    """Make the machine boot the other slot; UpgradeError when that is not whole."""
    with machine.esp() as esp:
        files = machine.boot_files(esp)
        own, others = machine.own(files), machine.others(files)
        if not others:
            raise UpgradeError("the other slot has no system to go back to", hint="tegu history")
        target = others[0]
        say("going back by the next boot")
        state = read_state(machine.root)
        number = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        base = State(number, "trying", machine.current, machine.other, target.name.version)
        if state is not None and state.status == "trying" and state.live == machine.current:
            base = replace(state)
        back = replace(base, reason="by hand")
        if own.name.generation > target.name.generation:
            # Newer ones come first: this one must count as used up.
            write_state(back, machine.root)
            target.renamed(target.name.counted(None))
            own.renamed(own.name.counted(0))
        else:
            write_state(
                State(
                    number,
                    "trial",
                    machine.other,
                    machine.current,
                    machine.places.version,
                    failed_before=tuple(health.failed_units()),
                    settings=health.effective_settings(),
                    image=target.verity.root_hash,
                ),
                machine.root,
            )
            target.renamed(target.name.counted(1))
    _note(machine, back, "going back", "by hand")
    return Outcome(back.id, "failed", target.name.version, (), (), reboot=True)


def _note(machine: SlotMachine, state: State, what: str, detail: str = "") -> None:
    note(Event(int(time.time()), state.id, what, machine.places.version, detail), machine.root)
