"""The agent's state as metrics, for whichever protocol: names, units, labels, values.

Names follow Prometheus's conventions (base units, `_total` for what only grows). What the health
score is made of is there part by part: 100 less all `tegu_health_penalty` is `tegu_health_score`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tegu
from tegu.errors import TeguError

__all__ = ["METRICS", "Metric", "Sample", "samples"]

_MOST = 100
"""Findings that are told one by one; the worst come first."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured; `unit` as UCUM has it, for protocols that want one."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = "1"


class Sample(NamedTuple):
    """One value, with the values of its metric's labels."""

    labels: tuple[str, ...]
    value: float


_Values = dict[tuple[str, ...], float]

_FINDING = ("rule", "severity", "culprit_kind", "culprit", "unit", "remedy")

METRICS = {
    m.name: m
    for m in (
        Metric("tegu_agent_up", "gauge", "Whether the agent runs and has looked lately."),
        Metric("tegu_agent_info", "gauge", "Which agent on which kernel.", ("version", "kernel")),
        Metric("tegu_agent_start_time_seconds", "gauge", "When the agent started.", (), "s"),
        Metric("tegu_agent_last_look_time_seconds", "gauge", "When it looked last.", (), "s"),
        Metric("tegu_agent_looks_total", "counter", "Looks since it started."),
        Metric("tegu_agent_cpu_seconds_total", "counter", "Its own CPU time.", (), "s"),
        Metric("tegu_agent_resident_bytes", "gauge", "Its own memory.", (), "By"),
        Metric("tegu_health_score", "gauge", "100 for a healthy machine, less the penalties."),
        Metric(
            "tegu_health_penalty",
            "gauge",
            "What a finding takes from the health score: 40, 15 or 3 by severity, times how sure.",
            ("rule", "culprit"),
        ),
        Metric("tegu_rule_findings", "gauge", "Findings of each rule now.", ("rule",)),
        Metric(
            "tegu_rule_failures_total", "counter", "Looks in which a rule raised.", ("rule",)
        ),
        Metric("tegu_finding_sure", "gauge", "A finding: how sure its rule is, 0 to 1.", _FINDING),
        Metric("tegu_finding_victims", "gauge", "How many suffer of it.", _FINDING),
        Metric(
            "tegu_repairs_total", "counter", "Repairs by how they ended.", ("remedy", "outcome")
        ),
        Metric(
            "tegu_pressure_seconds_total",
            "counter",
            "Time in which some, or all, tasks waited for a resource.",
            ("resource", "kind"),
            "s",
        ),
    )
}  # fmt: skip


def samples(state: dict[str, Any] | None) -> dict[str, list[Sample]]:
    """Return the samples of every metric, by name; none of most without a state.

    Raises TeguError when the state does not look like the agent's.
    """
    found: dict[str, _Values] = {name: {} for name in METRICS}
    found["tegu_agent_up"][()] = float(state is not None)
    if state is not None:
        try:
            _fill(found, state)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise TeguError(f"the agent's state does not look like one ({e!r})") from e
    return {name: [Sample(*v) for v in values.items()] for name, values in found.items()}


def _fill(found: dict[str, _Values], state: dict[str, Any]) -> None:
    def one(name: str, value: float, *labels: str) -> None:
        # The first counts, and findings come the worst first: one series twice is no exposition.
        found[name].setdefault(tuple(map(str, labels)), float(value))

    one("tegu_agent_info", 1, tegu.__version__, state["kernel"])
    one("tegu_agent_start_time_seconds", state["started"])
    one("tegu_agent_last_look_time_seconds", state["time"])
    one("tegu_agent_looks_total", state["looks"])
    one("tegu_agent_cpu_seconds_total", state["agent"]["cpu_seconds"])
    one("tegu_agent_resident_bytes", state["agent"]["resident_bytes"])
    one("tegu_health_score", state["score"])
    counts = Counter(f["rule"] for f in state["findings"])
    for rule in state["rules"]:
        one("tegu_rule_findings", counts[rule], rule)
        one("tegu_rule_failures_total", state["rule_failures"].get(rule, 0), rule)
    for finding in state["findings"][:_MOST]:
        who = finding["culprit"] or {"kind": "", "name": "", "unit": ""}
        penalty = state["penalties"].get(finding["key"], 0)
        one("tegu_health_penalty", penalty, finding["rule"], who["name"])
        labels = (finding["rule"], finding["severity"], who["kind"], who["name"], who["unit"],
                  finding["remedy"])  # fmt: skip
        one("tegu_finding_sure", finding["sure"], *labels)
        one("tegu_finding_victims", len(finding["victims"]), *labels)
    for remedy, outcome, count in state["repairs"]:
        one("tegu_repairs_total", count, remedy, outcome)
    for resource, waited in state["pressure"].items():
        for kind in ("some", "full"):
            one("tegu_pressure_seconds_total", waited[kind], resource, kind)
