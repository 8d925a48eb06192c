"""A control group that its processor quota stops in most periods."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_SHARE = 0.5
_WITHHELD = 0.2
"""Seconds each second."""
_FEWEST = 10  # periods


def check(look: Look) -> Iterator[Finding]:
    for group in look.after.groups.values():
        quota = group.get("cpu.max/quota")
        periods = look.grown(group, "cpu.stat/nr_periods")
        if not quota or periods < _FEWEST:
            continue
        share = look.grown(group, "cpu.stat/nr_throttled") / periods
        if share < _SHARE:
            continue
        withheld = look.grown(group, "cpu.stat/throttled_usec") / 1e6
        if withheld < _WITHHELD * look.seconds:
            continue  # often, but never for long
        cpus = quota / max(group.get("cpu.max/period"), 1)
        yield Finding(
            rule="cpu_throttle",
            title=f"{group.path} is stopped by its quota of {cpus:g} processors",
            severity="warning",
            sure=0.9,
            culprit=Subject.group(group.path),
            victims=(Subject.group(group.path),),
            evidence=(
                Evidence("periods stopped", round(100 * share, 1), "%", 100 * _SHARE),
                Evidence("withheld", round(withheld / look.seconds, 2), "s each second", _WITHHELD),
                Evidence("quota", cpus, "processors"),
                Evidence(
                    "used",
                    round(look.grown(group, "cpu.stat/usage_usec") / 1e6 / look.seconds, 3),
                    "processors",
                ),
            ),
            remedy="raise-quota",
            target={"group": group.path, "cpus": cpus},
            advice="a higher quota, or a weight instead of one: a weight costs nothing when idle",
        )


RULE = Rule(
    "cpu_throttle",
    "Is a control group stopped by its processor quota?",
    ("cpu.stat: nr_throttled, nr_periods", "cpu.max"),
    "Documentation/admin-guide/cgroup-v2.rst, cpu; Documentation/scheduler/sched-bwc.rst",
    check,
)
