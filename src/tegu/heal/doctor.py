"""One look, all rules: what is wrong with this machine, and how well it is on the whole."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tegu.heal.finding import SEVERITIES, Finding
from tegu.heal.look import Look, look
from tegu.heal.rule import Rule
from tegu.heal.rules import RULES, find_rule

__all__ = ["Diagnosis", "diagnose", "examine", "score"]

_PENALTY = {"critical": 40.0, "warning": 15.0, "notice": 3.0}


@dataclass(frozen=True)
class Diagnosis:
    """What the rules found; `failures` are rules that could not say, each with the reason."""

    host: str
    kernel: str
    time: float
    seconds: float
    findings: tuple[Finding, ...]
    failures: dict[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()

    @property
    def ill(self) -> bool:
        """Whether there is more than a notice."""
        return any(f.severity != "notice" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything, as JSON can say it."""
        return {
            "host": self.host,
            "kernel": self.kernel,
            "time": self.time,
            "seconds": round(self.seconds, 3),
            "score": score(self.findings),
            "penalties": penalties(self.findings),
            "rules": list(self.rules),
            "findings": [f.to_json() for f in self.findings],
            "failures": self.failures,
        }


def penalties(findings: Iterable[Finding]) -> dict[str, float]:
    """Return what each finding takes from the score: the weight of its severity by its sureness."""
    return {f.key: round(_PENALTY[f.severity] * f.sure, 1) for f in findings}


def score(findings: Iterable[Finding]) -> int:
    """Return 100 for a healthy machine, less the penalties of its findings, not below 0."""
    return max(0, round(100 - sum(penalties(findings).values())))


def diagnose(
    seconds: float,
    rules: Sequence[str] = RULES,
    *,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Look for so many seconds and judge by `rules`; raises UsageError for an unknown rule."""
    chosen = [find_rule(name) for name in rules]
    say(f"looking for {seconds:g} s")
    return examine(look(seconds, stop), chosen, say=say)


def examine(
    seen: Look, rules: Sequence[Rule], *, say: Callable[[str], None] = lambda _: None
) -> Diagnosis:
    """Judge a look. A rule that fails is told in `failures` and does not keep others from it."""
    findings: list[Finding] = []
    failures: dict[str, str] = {}
    for rule in rules:
        say(rule.question)
        try:
            findings += rule.check(seen)
        except Exception as e:  # noqa: BLE001 - one rule's fault must not hide what others see
            failures[rule.name] = f"{type(e).__name__}: {e}".split("\n", 1)[0]
    findings.sort(key=lambda f: (SEVERITIES.index(f.severity), -f.sure, f.key))
    return Diagnosis(
        platform.node(),
        platform.release(),
        time.time(),
        seen.seconds,
        tuple(findings),
        failures,
        tuple(r.name for r in rules),
    )
