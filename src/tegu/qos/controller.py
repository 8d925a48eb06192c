"""The feedback layer's rules, without a clock or a file: windows in, decisions out.

slack = (SLO - p99) / SLO. Below 0 the knob of the resource under most pressure is halved, and left
alone for the cool-down; if that did not help, it is given back and the next one is tried. Above 0.2
for three windows in a row, the knob gets 5 % of its range back. Between, nothing moves. Without a
feed that can be believed, every knob goes to its safe value, and back when there is one again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tegu.qos.feeds import Reading
from tegu.qos.policy import Knob, Loop

__all__ = ["Controller", "Decision", "State"]

State = Literal["safe", "cut", "undone", "cooling", "holding", "growing", "open", "waiting"]
GROW_SLACK = 0.2
GROW_WINDOWS = 3
GROW_STEP = 0.05
HELPED = 0.95
"""A cut helped when the p99 afterwards is below this part of the p99 before."""
CONSTANT = 30
"""A figure that is the same, to the last digit, in as many windows is not measured."""


@dataclass(frozen=True)
class Decision:
    """What each knob is to be (a fraction of its ceiling; 1: no limit), and why."""

    knobs: Mapping[Knob, float]
    state: State
    why: str


@dataclass
class Controller:
    """Remembers what was done; `step` is called once a window. Times are seconds of any clock."""

    loop: Loop
    slo: float
    knobs: dict[Knob, float] = field(default_factory=dict)
    _last: tuple[Knob, float, float] | None = None
    """The knob cut last, its value and the p99 before."""
    _tried: list[Knob] = field(default_factory=list)
    _cool_until: float = float("-inf")
    _good: int = 0
    _trusted: dict[Knob, float] = field(default_factory=dict)
    """What the knobs were when the feed was last believed; not empty while it is not."""
    _seen: tuple[float, float] = (-1.0, -1.0)
    _same: int = 0

    def __post_init__(self) -> None:
        for knob in self.loop.knobs:
            self.knobs.setdefault(knob, 1.0)

    def step(self, now: float, reading: Reading | str, pressure: Mapping[Knob, float]) -> Decision:
        """Decide. `reading` is a string when the feed gave none: the reason.

        `pressure` is the share of time (percent) that the latency class waited for each resource.
        """
        if isinstance(reading, str):
            return self._safe(reading)
        if (reading.p99, reading.time) == self._seen and reading.samples != 0:
            return self._decide("waiting", "the feed has nothing new")
        self._same = self._same + 1 if reading.p99 == self._seen[0] and reading.p99 else 0
        self._seen = (reading.p99, reading.time)
        if self._same >= CONSTANT:
            return self._safe(
                f"the feed has said {reading.p99:g} s {self._same + 1} times in a row"
            )
        if reading.samples is not None and reading.samples < self.loop.samples:
            self._good = 0
            return self._decide("waiting", f"{reading.samples} samples in this window are too few")
        if self._trusted:
            # The caps were for want of knowledge, not for lateness.
            self.knobs.update(self._trusted)
            self._trusted = {}
        slack = (self.slo - reading.p99) / self.slo
        if slack < 0:
            self._good = 0
            return self._late(now, reading.p99, slack, pressure)
        if self._last is not None and now >= self._cool_until:
            self._last = None
            self._tried.clear()
        if slack <= GROW_SLACK:
            self._good = 0
            return self._decide("holding", f"slack {slack:.2f}")
        self._good += 1
        if now < self._cool_until:
            return self._decide("cooling", f"slack {slack:.2f}")
        return self._grow(slack)

    def _safe(self, why: str) -> Decision:
        self._trusted = self._trusted or dict(self.knobs)
        for knob, value in self.knobs.items():
            self.knobs[knob] = min(value, self.loop.safe)
        self._good, self._last = 0, None
        return self._decide("safe", why)

    def _late(
        self, now: float, p99: float, slack: float, pressure: Mapping[Knob, float]
    ) -> Decision:
        if now < self._cool_until:
            return self._decide("cooling", f"slack {slack:.2f}, waiting for the last cut")
        if self._last is not None:
            knob, value, before = self._last
            self._last = None
            if p99 > HELPED * before:
                self.knobs[knob] = value
                self._tried.append(knob)
                return self._decide("undone", f"less {knob} for batch did not help")
        left = [k for k in self.loop.knobs if self.knobs[k] > self.loop.floor]
        fresh = [k for k in left if k not in self._tried]
        if not fresh:
            self._tried.clear()
            fresh = left
        if not fresh:
            return self._decide("holding", "every knob is at its floor")
        knob = max(fresh, key=lambda k: pressure.get(k, 0.0))
        self._last = (knob, self.knobs[knob], p99)
        self.knobs[knob] = max(self.knobs[knob] / 2, self.loop.floor)
        self._cool_until = now + self.loop.cooldown
        return self._decide("cut", f"slack {slack:.2f}: {knob} halved")

    def _grow(self, slack: float) -> Decision:
        below = [k for k in self.loop.knobs if self.knobs[k] < 1.0]
        if not below:
            return self._decide("open", f"slack {slack:.2f}")
        if self._good < GROW_WINDOWS:
            return self._decide("holding", f"slack {slack:.2f}, {self._good} good windows")
        self._good = 0
        knob = min(below, key=lambda k: self.knobs[k])
        self.knobs[knob] = min(1.0, self.knobs[knob] + GROW_STEP)
        return self._decide("growing", f"slack {slack:.2f}: {knob} +{GROW_STEP:.0%}")

    def _decide(self, state: State, why: str) -> Decision:
        return Decision(dict(self.knobs), state, why)
