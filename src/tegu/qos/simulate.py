"""The feedback layer's decisions for windows that were recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tegu.errors import QosError, UsageError
from tegu.qos.controller import Controller, Decision
from tegu.qos.feeds import FeedError, Reading, check
from tegu.qos.policy import KNOBS, Knob, Policy

__all__ = ["simulate"]


def simulate(policy: Policy, trace: Path) -> Iterator[tuple[float | None, Decision]]:
    """Yield p99 (seconds, or None) and decision for each line of `trace`.

    Windows are the policy's length apart. Raises QosError with file and line.
    """
    if policy.objective is None:
        raise UsageError(f"{policy.source}: there is no [slo], so there is nothing to decide")
    controller = Controller(policy.loop, policy.objective.p99)
    try:
        text = trace.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise QosError(f"cannot read {trace}: {getattr(e, 'strerror', None) or e}") from e
    now = 0.0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        now += policy.loop.window
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise QosError(f"{trace}:{number}: not JSON: {e}") from e
        if not isinstance(raw, dict):
            raise QosError(f"{trace}:{number}: not an object")
        reading: Reading | str = "the feed said nothing"
        if raw.get("p99") is not None:
            try:
                reading = check({**raw, "time": now}, policy.objective.feed.stale, now)
            except FeedError as e:
                reading = e.message
        p99 = reading.p99 if isinstance(reading, Reading) else None
        yield p99, controller.step(now, reading, _pressure(raw.get("pressure")))


def _pressure(raw: object) -> dict[Knob, float]:
    values = raw if isinstance(raw, dict) else {}
    return {
        k: float(values[k])
        for k in KNOBS
        if isinstance(values.get(k), int | float) and not isinstance(values[k], bool)
    }
