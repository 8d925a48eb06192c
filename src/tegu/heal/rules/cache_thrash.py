"""A control group at its memory limit that reads again and again what it had just to give up."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import Group

_STALLED = 0.15
_REFAULTS = 50.0  # pages a second


def check(look: Look) -> Iterator[Finding]:
    for group in look.after.groups.values():
        if look.stalled(group, "memory") < _STALLED:
            continue
        limit, name = near_limit(group)
        if limit is None:
            continue
        rate = refaults(look, group)
        if rate < _REFAULTS or _innocent(look, group):
            continue
        yield Finding(
            rule="cache_thrash",
            title=f"{group.path} thrashes: its {name} is less than it works with",
            severity="warning",
            sure=0.85,
            culprit=Subject.group(group.path),
            victims=(Subject.group(group.path),),
            evidence=(
                Evidence(
                    "waits for memory",
                    round(100 * look.stalled(group, "memory"), 1),
                    "% of the time",
                    100 * _STALLED,
                ),
                Evidence("pages read again", round(rate), "a second", _REFAULTS),
                Evidence(name, round(limit / 2**20, 1), "MiB"),
            ),
            remedy="raise-memory",
            target={"group": group.path},
            advice=f"a higher {name}, or less work at a time",
        )


def near_limit(group: Group) -> tuple[int | None, str]:
    """Return the limit that the group has come to, and its name; None where it has not."""
    used = group.get("memory.current")
    for name in ("memory.max", "memory.high"):
        limit = group.limit(name)
        if limit and used > 0.9 * limit:
            return limit, name
    return None, ""


def refaults(look: Look, group: Group) -> float:
    old = look.before.groups.get(group.path)
    if old is None or "refaults" not in old.values:
        return 0.0
    return look.grown(group, "refaults") / look.seconds


def _innocent(look: Look, group: Group) -> bool:
    """Whether a group below is to blame (it has a limit of its own), or a neighbour is."""
    below = [g for p, g in look.after.groups.items() if p.startswith(group.path.rstrip("/") + "/")]
    if any(near_limit(g)[0] and look.stalled(g, "memory") >= _STALLED for g in below):
        return True
    from tegu.heal.rules.memory_neighbour import neighbour

    return neighbour(look, group) is not None


RULE = Rule(
    "cache_thrash",
    "Does a control group read again and again what its limit makes it give up?",
    ("memory.pressure", "memory.stat: workingset_refault_*", "memory.max", "memory.high"),
    "Documentation/admin-guide/cgroup-v2.rst, memory.stat",
    check,
)
