"""A control group that takes the processors, while others wait for them most of their time."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import Group

_STALLED = 0.4
_TAKES = 0.5
"""Of all processors: what a culprit must use."""
_WORKS = 0.02
"""Processors that a victim must use: one that only ticks over is no victim."""


def check(look: Look) -> Iterator[Finding]:
    processors = len(os.sched_getaffinity(0))
    busy = {k: v - look.before.cpu.get(k, 0.0) for k, v in look.after.cpu.items()}
    whole = sum(busy.values())
    if whole <= 0 or busy.get("idle", 0.0) / whole > 0.1:
        return
    used = {
        g.path: look.grown(g, "cpu.stat/usage_usec") / 1e6 / look.seconds for g in look.leaves()
    }
    if not used:
        return
    path = max(used, key=lambda p: used[p])
    if used[path] < _TAKES * processors:
        return
    victims = [g for g in look.leaves() if g.path != path and _waits(look, g, used[g.path])]
    if not victims:
        return
    worst = max(victims, key=lambda g: look.stalled(g, "cpu"))
    yield Finding(
        rule="cpu_neighbour",
        title=f"{path} takes the processors that {worst.path} waits for",
        severity="warning",
        sure=0.85,
        culprit=Subject.group(path),
        victims=tuple(Subject.group(v.path) for v in victims),
        evidence=(
            Evidence("it uses", round(used[path], 2), f"of {processors} processors"),
            Evidence(
                "the other waits",
                round(100 * look.stalled(worst, "cpu"), 1),
                "% of the time",
                100 * _STALLED,
            ),
            Evidence("the other uses", round(used[worst.path], 3), "processors"),
        ),
        remedy="lower-weight",
        target={"group": path},
        advice=f"a lower CPUWeight for {path}: it then has what the others leave",
    )


def _waits(look: Look, group: Group, used: float) -> bool:
    """Whether it works, waits most of the time, and is not stopped by a quota of its own."""
    return (
        look.stalled(group, "cpu") >= _STALLED
        and used >= _WORKS
        and not look.grown(group, "cpu.stat/nr_throttled")
        and not _short_lived(look, group)
    )


def _short_lived(look: Look, group: Group) -> bool:
    """Whether it came while we looked: what starts takes all that it can get, and is soon done."""
    return group.path not in look.before.groups


RULE = Rule(
    "cpu_neighbour",
    "Does one control group take the processors that another waits for?",
    ("cpu.pressure", "cpu.stat: usage_usec", "/proc/stat"),
    "Documentation/accounting/psi.rst",
    check,
)
