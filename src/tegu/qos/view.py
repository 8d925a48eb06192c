"""The loop's state as a page of text: figures, and a line of bars for each over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["History", "render", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


@dataclass
class History:
    """The newest states, oldest first."""

    states: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_WIDTH))

    def add(self, state: dict[str, Any]) -> None:
        """Keep a state, unless it is the one seen last."""
        if not self.states or self.states[-1].get("time") != state.get("time"):
            self.states.append(state)


def sparkline(values: Sequence[float | None], top: float) -> str:
    """Return a bar for each value from 0 to `top`; a blank for None, the highest for more."""
    last = len(_BARS) - 1
    return "".join(
        " " if v is None else _BARS[min(last, max(0, int(v / top * last)) if top > 0 else 0)]
        for v in values
    )


def render(history: History) -> str:
    """Return the page."""
    now = history.states[-1]
    slo = now["slo"]
    p99 = "none" if now["p99"] is None else f"{now['p99'] * 1e3:.3f} ms"
    lines = [
        f"{now['state']}: {now['why']}",
        "",
        f"{'p99':<16}{p99:>12}  {sparkline([s['p99'] for s in history.states], 2 * slo)}",
        f"{'objective':<16}{slo * 1e3:>9.3f} ms",
    ]
    for knob, value in now["knobs"].items():
        past = sparkline([s["knobs"].get(knob) for s in history.states], 1.0)
        lines.append(f"{'batch ' + knob:<16}{value:>12.0%}  {past}")
    for resource, value in now["pressure"].items():
        past = sparkline([s["pressure"].get(resource) for s in history.states], 100.0)
        lines.append(f"{'waits for ' + resource:<16}{value:>10.1f} %  {past}")
    for name, groups in now["members"].items():
        lines.append(f"{name:<16}{', '.join(groups) or 'nothing matches'}")
    lines += [f"not written: {words}" for words in now["failed"]]
    return "\n".join(lines)
