"""`clocks`: whether the time of day jumps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tegu.probe.reading import Reading, realtime_offset
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings

__all__ = ["Clocks"]

_SOURCE = Path("/sys/devices/system/clocksource/clocksource0")
_LEAST_SECONDS = 0.01


class Clocks(Reading):
    """Does the time of day jump, how far, and does it drift?

    The time of day against the time since boot (which nobody sets), ten times a second. Where they
    part by 10 ms or more from one look to the next is a jump: somebody set the clock, or the
    machine was moved or stopped. What is left is the drift: what a time daemon corrects by running
    the clock faster or slower.
    """

    name = "clocks"
    group = "system"
    question = "Does the time of day jump, how far, and does it drift?"
    facility = "CLOCK_REALTIME and CLOCK_BOOTTIME (clock_gettime(2)), and the clock source in sysfs"
    overhead = "two clocks, ten times a second"
    example = "Example: tegu probe clocks --seconds 60"

    def __init__(self) -> None:
        self._offset: float | None = None

    def look(self, settings: Settings) -> dict[str, Any]:
        self._offset = offset = realtime_offset()
        return {"offset": offset, "source": _read("current_clocksource")}

    def between(self) -> Iterator[Record]:
        now = realtime_offset()
        moved = now - (now if self._offset is None else self._offset)
        self._offset = now
        if abs(moved) >= _LEAST_SECONDS:
            yield {"jump_seconds": round(moved, 6), "to": round(time.time(), 6)}

    def lines(self, event: Record) -> list[str]:
        moved = float(event["jump_seconds"])
        way = "forwards" if moved > 0 else "backwards"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(event["to"])))
        return [f"the time of day went {way} by {abs(moved):.3f} s, to {when} UTC"]

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        return {
            "source": last["source"],
            "available": _read("available_clocksource").split(),
            "moved_seconds": round(last["offset"] - first["offset"], 6),
        }

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        jumped = sum(float(e["jump_seconds"]) for e in recording.events)
        drift = float(summary["moved_seconds"]) - jumped
        return [
            Table(
                f"clocks, over {recording.seconds:.1f} s",
                ("source", "jumps", "by", "drift"),
                [
                    (
                        summary["source"],
                        len(recording.events),
                        f"{jumped:.3f} s",
                        f"{1e6 * drift / max(recording.seconds, 1e-3):.1f} us a second",
                    )
                ],
            )
        ]


def _read(name: str) -> str:
    try:
        return (_SOURCE / name).read_text().strip()
    except OSError:
        return ""
