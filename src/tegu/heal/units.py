"""systemd's units, and who writes how much to the journal."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from tegu.errors import TeguError
from tegu.process import run

__all__ = ["Unit", "journal_lines", "list_units", "properties"]

_MOST_LINES = 3_000
"""Reading more takes longer than the look itself; a flood shows in less."""


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


def journal_lines(since: float) -> dict[str, int]:
    """Return how many lines each unit wrote since then (seconds since the epoch), at least."""
    try:
        done = run(
            [
                "journalctl",
                f"--since=@{since:.6f}",
                f"--lines={_MOST_LINES}",
                "--output=json",
                "--output-fields=_SYSTEMD_UNIT",
                "--no-pager",
                "--quiet",
            ],
            timeout=60,
        )
    except TeguError:
        return {}
    counts: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                counts[str(entry.get("_SYSTEMD_UNIT", "kernel"))] += 1
    return dict(counts)
