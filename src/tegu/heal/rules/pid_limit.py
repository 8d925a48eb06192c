"""A control group that has as many tasks as it may, often because nobody waits for the dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_FULL = 0.9
_ZOMBIES = 0.5


def check(look: Look) -> Iterator[Finding]:
    dead: Counter[int] = Counter(p.parent for p in look.after.processes.values() if p.state == "Z")
    for group in look.after.groups.values():
        limit = group.limit("pids.max")
        count = group.get("pids.current")
        if not limit or count < _FULL * limit:
            continue
        parents = {p: n for p, n in dead.items() if look.group_of(p) == group.path}
        zombies = sum(parents.values())
        careless = max(parents, key=lambda p: parents[p]) if zombies > _ZOMBIES * count else 0
        cause = Subject.group(group.path)
        subject = look.process(careless) if careless else cause
        service = cause.unit.endswith(".service")
        remedy = "restart-unit" if careless and service else "raise-tasks"
        yield Finding(
            rule="pid_limit",
            title=f"{group.path} has {count} of {limit} tasks"
            + (f": {subject} does not wait for its {zombies} dead children" if careless else ""),
            severity="critical",
            sure=0.95 if careless else 0.8,
            culprit=subject,
            victims=(Subject.group(group.path),),
            evidence=(
                Evidence("tasks", count, f"of {limit}", _FULL * limit),
                Evidence("dead, not waited for", zombies),
                Evidence("refused so far", group.get("pids.events/max")),
            ),
            remedy=remedy,
            target={"unit": cause.unit, "group": group.path, "max": limit},
            advice="TasksMax= of the unit; a parent must wait(2) for its children",
        )


RULE = Rule(
    "pid_limit",
    "Has a control group as many tasks as it may, and why?",
    ("pids.current", "pids.max", "/proc/PID/stat"),
    "Documentation/admin-guide/cgroup-v2.rst, pid; wait(2), notes on zombies",
    check,
)
