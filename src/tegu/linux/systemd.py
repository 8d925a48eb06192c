"""systemd's units, as systemctl(1) tells of them."""

from __future__ import annotations

from dataclasses import dataclass

from tegu.errors import TeguError
from tegu.process import run

__all__ = ["Unit", "list_units", "properties"]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as `systemctl list-units` has it."""

    name: str
    load: str
    active: str
    sub: str


def list_units() -> list[Unit]:
    """Return all units that systemd holds in memory; none where there is no systemd."""
    try:
        done = run(
            ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager"],
            timeout=60,
        )
    except TeguError:
        return []
    found = []
    for line in done.stdout.splitlines():
        words = line.split(None, 4)
        if len(words) >= 4:
            found.append(Unit(words[0], words[1], words[2], words[3]))
    return found


def properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit (systemd.directives(7)); none where there is no systemd."""
    try:
        done = run(["systemctl", "show", "--property", ",".join(names), "--", unit], timeout=30)
    except TeguError:
        return {}
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines() if "=" in line)
