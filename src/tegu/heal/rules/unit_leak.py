"""Units that ended and are never forgotten: systemd keeps each, and is slower with their number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_MANY = 50


def check(look: Look) -> Iterator[Finding]:
    dead = [u for u in look.units if u.active == "failed"]
    patterns = Counter(pattern(u.name) for u in dead)
    for name, count in patterns.items():
        if count < _MANY:
            continue
        first = look.after.processes.get(1)
        yield Finding(
            rule="unit_leak",
            title=f"systemd keeps {count} failed units like {name}",
            severity="warning",
            sure=0.9,
            culprit=Subject("units", name),
            victims=(Subject("process", first.comm if first else "init", 1),),
            evidence=(
                Evidence("failed units of that name", count, "", _MANY),
                Evidence("units in all", len(look.units)),
            ),
            remedy="forget-units",
            target={"pattern": name},
            advice=f"systemctl reset-failed '{name}'; CollectMode=inactive-or-failed for new ones",
        )


def pattern(name: str) -> str:
    """Return a unit's name with what varies as `*`: numbers, instances, random words."""
    stem, dot, kind = name.rpartition(".")
    base, at, _ = stem.partition("@")
    if at:
        return f"{base}@*{dot}{kind}"
    # systemd-run's own names are run-rHEX and run-uNUMBER (run-pPID-iINVOCATION since 257).
    return re.sub(r"(?<=[-_.])[ripu]?[0-9a-f]*\d[0-9a-f]*(?=$|[-_.])|\d+", "*", stem) + dot + kind


RULE = Rule(
    "unit_leak",
    "Does systemd keep many units that failed?",
    ("systemctl list-units",),
    "systemd.unit(5), CollectMode=",
    check,
)
