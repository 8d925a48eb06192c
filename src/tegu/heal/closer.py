"""A closer look: where tasks wait a lot, a probe for some seconds says for whom, behind whom.

Pressure (PSI) is cheap and always there, but names nobody. When it passes a threshold, the probe
for that resource runs once, in a process of its own, and is gone again; its answer counts while the
pressure lasts, at most five minutes. It is added to the evidence of the findings on that resource;
where no rule has one, it makes a notice.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tegu.errors import TeguError
from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.process import run

__all__ = ["PRESSURES", "Answer", "Closer", "LookCloser", "ask_probe"]

_FRESH = 300.0
_STARTS = 90.0
"""Seconds more than it looks that a probe may take, on a machine that is overloaded."""
_SHORTEST = 1.0
"""Seconds: in less, a moment's pressure looks like more than it is."""
_MOST = 3
_WORTH = 0.05
"""Of the time that was looked: who waited less is not named as culprit's victim."""

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pressure:
    """What is asked when tasks wait for a resource."""

    resource: str
    probe: str
    threshold: float
    """Share of the time in which some task waited."""
    words: str
    rules: tuple[str, ...]
    """Whose findings the answer belongs to."""


_ALL = (
    Pressure("cpu", "runq", 0.4, "a processor", ("cpu_neighbour", "cpu_throttle")),
    Pressure(
        "memory",
        "reclaim",
        0.1,
        "memory",
        ("memory_neighbour", "cache_thrash", "oom_loop", "negative_dentries"),
    ),
    Pressure("io", "blkio", 0.4, "a disk", ("slow_device", "failing_device", "suspended_device")),
)
PRESSURES = tuple(f"{p.resource}_pressure" for p in _ALL)
"""The rules that notices of this module belong to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe said: evidence, and the groups that it holds for culprit and victim."""

    evidence: tuple[Evidence, ...]
    culprit: str = ""
    victims: tuple[str, ...] = ()


Ask = Callable[[str, float], Facts]
LookCloser = Callable[[Look, Iterable[Finding]], list[Finding]]
"""What a `Closer` is to those who call it."""


class Closer:
    """Decides when to ask which probe, and keeps the answers while they hold."""

    def __init__(self, seconds: float = 3.0, ask: Ask | None = None) -> None:
        self._seconds = seconds
        self._ask = ask or ask_probe
        self._answers: dict[str, tuple[float, Answer]] = {}

    def __call__(self, look: Look, findings: Iterable[Finding]) -> list[Finding]:
        """Return the findings with what probes know of them; asks only where it is worth it."""
        found = list(findings)
        if look.seconds < _SHORTEST:
            return found
        for pressure in _ALL:
            share = waited(look, pressure.resource)
            # An answer holds until the pressure has clearly gone, or each look would ask anew.
            least = pressure.threshold / (2 if pressure.resource in self._answers else 1)
            if share < least:
                self._answers.pop(pressure.resource, None)
                continue
            found = _tell(look, pressure, share, self._answer(look, pressure), found)
        return found

    def _answer(self, look: Look, pressure: Pressure) -> Answer:
        at, answer = self._answers.get(pressure.resource, (0.0, Answer(())))
        if pressure.resource in self._answers and time.monotonic() - at < _FRESH:
            return answer
        answer = self._asked(look, pressure)
        self._answers[pressure.resource] = time.monotonic(), answer
        return answer

    def _asked(self, look: Look, pressure: Pressure) -> Answer:
        name = f"probe {pressure.probe}"
        try:
            facts = self._ask(pressure.probe, self._seconds)
            if "unsupported" in facts:
                return Answer((Evidence(name, f"unsupported: {facts['unsupported']}"),))
            return _READERS[pressure.resource](facts, look.own_group)
        except (TeguError, KeyError, TypeError, ValueError, AttributeError) as e:
            why = e.message if isinstance(e, TeguError) else f"strange answer ({e!r})"
            return Answer((Evidence(name, f"failed: {why}"),))


def waited(look: Look, resource: str) -> float:
    """Return the share of the time, 0 to 1, in which some task of the machine waited."""
    old, new = look.before.pressure.get(resource), look.after.pressure.get(resource)
    if old is None or new is None:
        return 0.0
    return max(0.0, (new.some_us - old.some_us) / 1e6 / look.seconds)


def ask_probe(name: str, seconds: float) -> Facts:
    """Run a probe in a process of its own and return what it printed; raises TeguError."""
    argv = [sys.executable, "-I", "-m", "tegu.probe.once", name, f"{seconds:g}"]
    said = run(argv, timeout=seconds + _STARTS).stdout
    facts = json.loads(said)
    if not isinstance(facts, dict):
        raise TypeError("no object")
    return facts


def _tell(
    look: Look, pressure: Pressure, share: float, answer: Answer, findings: Sequence[Finding]
) -> list[Finding]:
    theirs = [f for f in findings if f.rule in pressure.rules]
    if theirs:
        return [
            replace(f, evidence=(*f.evidence, *answer.evidence)) if f in theirs else f
            for f in findings
        ]
    percent = round(100 * share, 1)
    behind = f", most of them because of {answer.culprit}" if answer.culprit else ""
    notice = Finding(
        rule=f"{pressure.resource}_pressure",
        title=f"tasks wait for {pressure.words} {percent:g} % of the time{behind}",
        severity="notice",
        sure=0.6 if answer.culprit else 0.3,
        culprit=Subject.group(answer.culprit) if answer.culprit else None,
        victims=tuple(Subject.group(v) for v in answer.victims),
        evidence=(
            Evidence("some task waits", percent, "% of the time", 100 * pressure.threshold),
            *answer.evidence,
        ),
        advice=f"`tegu probe {pressure.probe}` shows it task by task; work that needs no answer"
        " soon belongs into a batch class (`tegu qos`)",
    )
    return [*findings, notice]


def _cpu(facts: Facts, own: str) -> Answer:
    # Where all is in one group, so is this program, and what it costs cannot be told apart.
    ours = {own} - {"/"}
    pairs = [p for p in facts["summary"]["pairs"] if not ours & {p["victim"], p["culprit"]}]
    pairs.sort(key=lambda p: -int(p["total_ns"]))
    seconds = float(facts["end"]["seconds"])
    evidence = tuple(
        Evidence(
            f"probe runq: {p['victim']} waits behind {p['culprit']}",
            round(int(p["total_ns"]) / 1e9, 3),
            f"s in {seconds:.1f} s",
        )
        for p in pairs[:_MOST]
    )
    tasks = [t for t in facts["summary"]["tasks"] if t["cgroup"] not in ours]
    evidence += tuple(
        Evidence(
            f"probe runq: {t['comm']} [{t['pid']}] of {t['cgroup']} waits",
            round(int(t["total_ns"]) / 1e9, 3),
            f"s in {seconds:.1f} s",
        )
        for t in sorted(tasks, key=lambda t: -int(t["total_ns"]))[:1]
    )
    others = [
        p for p in pairs
        if p["victim"] != p["culprit"] and p["culprit"] != "/"
        and int(p["total_ns"]) >= _WORTH * seconds * 1e9
    ]  # fmt: skip
    return _blame(evidence, [(p["culprit"], p["victim"]) for p in others])


def _memory(facts: Facts, own: str) -> Answer:
    stalls = sorted(facts["summary"]["stalls"], key=lambda s: -int(s["total_ns"]))
    seconds = float(facts["end"]["seconds"])
    grown = facts["summary"]["grown"]
    evidence = [
        Evidence(
            f"probe reclaim: {s['victim']} stalls"
            + (f" at the limit of {s['culprit']}" if s["culprit"] else f" ({s['kind']})"),
            round(int(s["total_ns"]) / 1e9, 3),
            f"s in {seconds:.1f} s",
        )
        for s in stalls[:_MOST]
    ]
    if grown:
        evidence.append(
            Evidence(
                f"probe reclaim: {grown['cgroup']} grew by",
                round(int(grown["bytes"]) / 2**20, 1),
                "MiB",
            )
        )
    blamed = [(s["culprit"] or (grown or {}).get("cgroup", ""), s["victim"]) for s in stalls]
    return _blame(tuple(evidence), [(c, v) for c, v in blamed if c])


def _io(facts: Facts, own: str) -> Answer:
    by_group: dict[tuple[str, str], list[int]] = {}
    for s in facts["summary"]["sums"]:
        known = by_group.setdefault((s["cgroup"], s["disk"]), [0, 0])
        known[0] += int(s["count"])
        known[1] += int(s["total_ns"])
    ranked = sorted(by_group.items(), key=lambda item: -item[1][1])
    evidence = tuple(
        Evidence(
            f"probe blkio: {group} on {disk}, {count} requests of",
            round(total / max(count, 1) / 1e6, 2),
            "ms",
        )
        for (group, disk), (count, total) in ranked[:_MOST]
    )
    groups = [group for (group, _), _ in ranked]
    # Who keeps the device busy; whoever else had requests there waits behind it.
    return _blame(evidence, [(groups[0], g) for g in groups if g != own] if groups else [])


_READERS: dict[str, Callable[[Facts, str], Answer]] = {"cpu": _cpu, "memory": _memory, "io": _io}


def _blame(evidence: tuple[Evidence, ...], pairs: Sequence[tuple[str, str]]) -> Answer:
    """Blame the culprit of the first pair; `pairs` are (culprit, victim), the worst first."""
    culprit = pairs[0][0] if pairs else ""
    victims = dict.fromkeys(v for c, v in pairs if c == culprit)
    return Answer(evidence, culprit, tuple(victims)[:_MOST])
