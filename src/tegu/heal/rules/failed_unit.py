"""A service that failed and stays down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.rules.unit_leak import pattern

_FEW = 50  # more of one name are one finding of the rule unit_leak


def check(look: Look) -> Iterator[Finding]:
    failed = [u for u in look.units if u.active == "failed"]
    counts = Counter(pattern(u.name) for u in failed)
    for unit in failed:
        if counts[pattern(unit.name)] >= _FEW:
            continue
        yield Finding(
            rule="failed_unit",
            title=f"{unit.name} has failed",
            severity="notice",
            sure=1.0,
            culprit=Subject("units", unit.name, unit=unit.name),
            evidence=(Evidence("state", f"{unit.active}/{unit.sub}"),),
            remedy="restart-unit" if unit.name.endswith(".service") else "",
            target={"unit": unit.name},
            advice=f"systemctl status {unit.name}; journalctl -u {unit.name}",
        )


RULE = Rule(
    "failed_unit",
    "Which units have failed?",
    ("systemctl list-units",),
    "systemd.unit(5)",
    check,
)
