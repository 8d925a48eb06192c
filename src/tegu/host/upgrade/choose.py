"""What the front door and the boot units call: by packages or by slots, as the machine is made."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import UnsupportedError, UpgradeError, UsageError
from tegu.host.upgrade import run as packages
from tegu.host.upgrade.apt import Update
from tegu.host.upgrade.config import CONFIG, read_config
from tegu.host.upgrade.outcome import Outcome

if TYPE_CHECKING:
    from tegu.host.upgrade.slots import Source

__all__ = ["boot_begins", "boot_proved", "preview", "roll_back", "upgrade"]

Say = Callable[[str], None]


def preview(
    *,
    security: bool = False,
    to: str | None = None,
    source: str | None = None,
    say: Say = lambda _: None,
) -> list[Update]:
    """Return what an upgrade would change, by what the repository or the slot's source has now."""
    from tegu.host.upgrade.slots import slot_machine, waiting
    from tegu.host.upgrade.slots.run import updates_of

    machine = slot_machine()
    if machine is None:
        _only_slots(source)
        return packages.preview(security=security, say=say)
    _whole(security=security)
    image = waiting(machine, _source(source, to), to)
    return [] if image is None else updates_of(image, machine.root)


def upgrade(
    *,
    security: bool = False,
    to: str | None = None,
    source: str | None = None,
    snapshot: bool = True,
    resume: bool = False,
    say: Say = lambda _: None,
) -> Outcome:
    """Upgrade this machine; see `tegu.host.upgrade.run` and `tegu.host.upgrade.slots`."""
    from tegu.host.upgrade import slots

    machine = slots.slot_machine()
    if machine is None:
        _only_slots(source)
        return packages.upgrade(security=security, to=to, snapshot=snapshot, resume=resume, say=say)
    _whole(security=security)
    if not snapshot:
        raise UnsupportedError("the other slot is always written: what runs stays as it is")
    with _alone():
        return slots.upgrade(machine, _source(source, to), to=to, say=say)


def roll_back(say: Say = lambda _: None) -> Outcome:
    """Make the machine boot what it was before its last upgrade."""
    from tegu.host.upgrade import slots

    machine = slots.slot_machine()
    if machine is None:
        return packages.roll_back(say)
    with _alone():
        return slots.roll_back(machine, say)


def boot_begins() -> str:
    """Do what an early boot has to do for an upgrade; returns what it was."""
    from tegu.host.upgrade import slots

    machine = slots.slot_machine()
    return packages.boot_begins() if machine is None else slots.begin(machine)


def boot_proved(*, reboot: bool = True) -> str:
    """Judge an upgrade on trial once the machine is up; returns what it is now."""
    from tegu.host.upgrade import slots

    machine = slots.slot_machine()
    if machine is None:
        return packages.boot_proved(reboot=reboot)
    return slots.prove(machine, reboot=reboot)


@contextmanager
def _alone(lock: Path = Path("/run/tegu/upgrade.lock")) -> Iterator[None]:
    """Hold off every other upgrade of a slot; UpgradeError when one runs, or without root."""
    if os.geteuid() != 0:
        raise UpgradeError("only root may upgrade the machine", hint="sudo tegu upgrade")
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UpgradeError("another upgrade is under way", hint="wait for it") from e
        yield


def _only_slots(source: str | None) -> None:
    if source is not None:
        raise UsageError(
            "--from is for machines of the immutable layout",
            hint="this one follows the repositories of /etc/apt/sources.list.d",
        )


def _whole(*, security: bool) -> None:
    if security:
        raise UnsupportedError("a slot is replaced as a whole: there are no security updates alone")


def _source(named: str | None, to: str | None) -> Source:
    from tegu.host.upgrade.slots import Source

    config = read_config()
    where = named or config.source
    if where is None:
        raise UpgradeError(
            "nothing says where slot images come from",
            hint=f'source = "https://..." in {CONFIG}, or --from DIRECTORY-OR-URL',
        )
    if "{release}" in where:
        if to is None:
            raise UpgradeError(f"{where} needs to be told a release", hint="--to RELEASE")
        where = where.replace("{release}", to)
    return Source(where, config.keyring)
