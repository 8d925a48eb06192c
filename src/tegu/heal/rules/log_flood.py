"""A unit that writes so much to the journal that it costs processor, disk, and others' history."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_LINES = 200.0  # a second
_WORKS = 0.05
"""Processors that journald must use before the journal is read: reading it is not free."""


def check(look: Look) -> Iterator[Finding]:
    journal = next(
        (g for p, g in look.after.groups.items() if p.endswith("/systemd-journald.service")), None
    )
    if journal is None:
        return
    used = look.grown(journal, "cpu.stat/usage_usec") / 1e6 / look.seconds
    if used < _WORKS:
        return
    for unit, lines in look.log_lines.items():
        rate = lines / look.seconds
        if rate < _LINES:
            continue
        yield Finding(
            rule="log_flood",
            title=f"{unit} writes {rate:.0f} lines a second to the journal",
            severity="warning",
            sure=0.95,
            culprit=Subject("cgroup", _path(look, unit), unit=unit),
            victims=(Subject.group(journal.path),),
            evidence=(
                Evidence("lines", round(rate), "a second", _LINES),
                Evidence("systemd-journald uses", round(used, 3), "processors", _WORKS),
            ),
            remedy="limit-log" if unit.endswith(".service") else "",
            target={"unit": unit},
            advice="LogRateLimitBurst= of the unit, and its log level",
        )


def _path(look: Look, unit: str) -> str:
    return next((p for p in look.after.groups if p.endswith(f"/{unit}")), unit)


RULE = Rule(
    "log_flood",
    "Does a unit flood the journal?",
    ("cpu.stat of systemd-journald.service", "journalctl"),
    "systemd.exec(5), LogRateLimitIntervalSec=; journald.conf(5)",
    check,
)
