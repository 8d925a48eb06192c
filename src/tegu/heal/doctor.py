"""One look, all rules: what is wrong with this machine, and how well it is on the whole."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tegu.heal.finding import SEVERITIES, Finding
from tegu.heal.look import Look, look
from tegu.heal.rule import Rule
from tegu.heal.rules import RULES, find_rule

if TYPE_CHECKING:
    from tegu.heal.closer import LookCloser

__all__ = ["Diagnosis", "closely", "diagnose", "examine", "score"]

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
    closer: LookCloser | None = None,
) -> Diagnosis:
    """Look for so many seconds and judge by `rules`; raises UsageError for an unknown rule.

    With `closer`, probes look where there is pressure.
    """
    chosen = [find_rule(name) for name in rules]
    say(f"looking for {seconds:g} s")
    seen = look(seconds, stop)
    found = examine(seen, chosen, say=say)
    if closer is None:
        return found
    say("asking probes where there is pressure")
    return closely(seen, found, closer)


def closely(seen: Look, found: Diagnosis, closer: LookCloser) -> Diagnosis:
    """Return the diagnosis of this look with what probes know where tasks wait a lot."""
    from tegu.heal.closer import PRESSURES

    findings = _sorted(closer(seen, found.findings))
    return replace(found, findings=findings, rules=(*found.rules, *PRESSURES))


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
    return Diagnosis(
        platform.node(),
        platform.release(),
        time.time(),
        seen.seconds,
        _sorted(findings),
        failures,
        tuple(r.name for r in rules),
    )


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.sure, f.key)))
