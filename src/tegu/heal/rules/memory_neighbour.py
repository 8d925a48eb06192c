"""A control group that takes so much memory that others, beside it, must give theirs up."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import Group

_STALLED = 0.05
_SHARE = 0.4
"""Of what they have in common: what a neighbour must hold to be the cause."""
_REFAULTS = 30.0


def check(look: Look) -> Iterator[Finding]:
    blamed: dict[str, list[Group]] = {}
    for group in look.leaves():
        if look.stalled(group, "memory") < _STALLED:
            continue
        if look.grown(group, "refaults") / look.seconds < _REFAULTS:
            continue
        culprit = neighbour(look, group)
        if culprit is not None:
            blamed.setdefault(culprit.path, []).append(group)
    for path, victims in blamed.items():
        culprit = look.after.groups[path]
        shared = _shared(look, victims[0])
        worst = max(look.stalled(v, "memory") for v in victims)
        yield Finding(
            rule="memory_neighbour",
            title=f"{path} takes memory that {victims[0].path} then has to read again",
            severity="warning",
            sure=0.8,
            culprit=Subject.group(path),
            victims=tuple(Subject.group(v.path) for v in victims),
            evidence=(
                Evidence("it holds", culprit.get("memory.current") >> 20, "MiB"),
                Evidence("of", shared[1] >> 20, "MiB"),
                Evidence(
                    "its neighbour waits for memory",
                    round(100 * worst, 1),
                    "% of the time",
                    100 * _STALLED,
                ),
                Evidence("neighbour holds", victims[0].get("memory.current") >> 20, "MiB"),
            ),
            remedy="contain-memory",
            target={"group": path, "room": shared[1]},
            advice=f"a memory.high for {path}, or memory.low for its neighbour",
        )


def neighbour(look: Look, victim: Group) -> Group | None:
    """Return the sibling that holds most of what the two share, when it is at its end."""
    from tegu.heal.rules.cache_thrash import near_limit

    if near_limit(victim)[0] is not None:
        return None  # its own limit
    base, room = _shared(look, victim)
    if room <= 0:
        return None
    rivals = [
        g
        for g in look.leaves()
        if g.path != victim.path
        and g.path.startswith(base.rstrip("/") + "/")
        and g.get("memory.current") >= _SHARE * room
        and g.get("memory.current") > victim.get("memory.current")
    ]
    return max(rivals, key=lambda g: g.get("memory.current"), default=None)


def _shared(look: Look, victim: Group) -> tuple[str, int]:
    """Return the nearest group above with a limit that is used up, and that limit.

    "/" and the machine's memory when that is short; room 0 where nothing is.
    """
    from tegu.heal.rules.cache_thrash import near_limit

    path = victim.path
    while path not in ("", "/"):
        path = path.rpartition("/")[0]
        group = look.after.groups.get(path)
        if group is not None:
            limit, _ = near_limit(group)
            if limit is not None:
                return path, limit
    total = look.after.memory.get("MemTotal", 0)
    short = look.after.memory.get("MemAvailable", total) < 0.1 * total
    return "/", total if short else 0


RULE = Rule(
    "memory_neighbour",
    "Does one control group take the memory that another works with?",
    ("memory.pressure", "memory.stat: workingset_refault_*", "memory.current", "memory.max"),
    "Documentation/admin-guide/cgroup-v2.rst, memory; Documentation/accounting/psi.rst",
    check,
)
