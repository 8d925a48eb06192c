"""The limits of the batch class that the feedback layer moves, one file each.

A fraction of 1 is what was there before. io.cost.qos is none of them: rewriting it in a loop is as
bad as no control at all. memory.high goes down by at most 1 % in 6 s: the kernel reclaims what is
above it in the writer, and a large step stalls everyone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from tegu.errors import SettingError
from tegu.linux.settings import FileTarget, PropertyTarget, Target
from tegu.qos.devices import devices
from tegu.qos.layer import Place
from tegu.qos.owner import Owner
from tegu.qos.policy import Knob, Loop

__all__ = ["Knobs"]

PERIOD = 100_000
"""Microseconds, the default of cpu.max."""
SHRINK_SECONDS = 6.0
SHRINK_PART = 0.01


class Knobs:
    """Writes fractions of ceilings to the groups of the batch class."""

    def __init__(self, place: Place, loop: Loop) -> None:
        self.place = place
        self.loop = loop
        self._owner = Owner(place.hierarchy, place.root)
        self._shrunk: dict[str, float] = {}
        for knob in loop.knobs:
            place.hierarchy.require(knob)

    def targets(self, groups: Sequence[str]) -> dict[Target, tuple[Knob, str]]:
        """Return everything that may be written for these groups."""
        found: dict[Target, tuple[Knob, str]] = {}
        for group in groups:
            for knob in self.loop.knobs:
                for target in self._targets(knob, group):
                    found[target] = (knob, group)
        return found

    def _targets(self, knob: Knob, group: str) -> list[Target]:
        unit = self._owner.unit(group)
        folder = self.place.hierarchy.directory(group)
        if knob == "cpu":
            return [PropertyTarget(unit, "CPUQuota") if unit else FileTarget(folder / "cpu.max")]
        if knob == "memory":
            return [self._owner.target(group, "memory.high")]
        if unit:
            return [PropertyTarget(unit, "IOReadIOPSMax"), PropertyTarget(unit, "IOWriteIOPSMax")]
        found = devices(self.place.sys_block)
        return [FileTarget(folder / "io.max", "keyed", d.number) for d in found]

    def set(self, now: float, values: Mapping[Knob, float], groups: Sequence[str]) -> list[str]:
        """Bring every limit nearer to its fraction; returns what could not be written.

        A group that is gone is no failure. `now` is a monotonic time in seconds.
        """
        failed = []
        former = {e.target: e.before for e in reversed(self.place.journal.entries())}
        for target, (knob, group) in self.targets(groups).items():
            part = values.get(knob, 1.0)
            try:
                if part >= 1.0:
                    if target in former:
                        self.place.journal.write(target, former[target], "batch is free again")
                    continue
                value = self._value(now, knob, target, group, part / len(groups))
                if value is not None:
                    self.place.journal.write(target, value, f"feedback: {knob} at {part:.0%}")
            except FileNotFoundError:
                continue
            except OSError as e:
                failed.append(f"{target}: {e.strerror or e}")
        return failed

    def _value(self, now: float, knob: Knob, target: Target, group: str, part: float) -> str | None:
        if knob == "cpu":
            processors = self.loop.ceilings.get("cpu", float(os.cpu_count() or 1))
            quota = max(1000, int(processors * part * PERIOD))
            if isinstance(target, PropertyTarget):
                return f"{quota * 100 / PERIOD:g}%"
            return f"{quota} {PERIOD}"
        if knob == "io":
            limit = max(1, int(self.loop.ceilings["io"] * part))
            if isinstance(target, PropertyTarget):
                name = devices(self.place.sys_block)
                return f"/dev/{name[0].name} {limit}" if name else None
            return f"rbps=max wbps=max riops={limit} wiops={limit}"
        return self._memory(now, target, group, int(self.loop.ceilings["memory"] * part))

    def _memory(self, now: float, target: Target, group: str, wanted: int) -> str | None:
        """Return the next memory.high on the way to `wanted`, or None when it is not time yet."""
        with suppress(SettingError, ValueError, OSError):
            folder = self.place.hierarchy.directory(group)
            used = int((folder / "memory.current").read_text())
            text = target.read() or "max"
            now_at = used if text in ("max", "infinity", "") else min(int(text), max(used, wanted))
            if now_at <= wanted:
                return str(wanted)
            if now - self._shrunk.get(group, float("-inf")) < SHRINK_SECONDS:
                return None
            self._shrunk[group] = now
            return str(max(wanted, int(now_at * (1 - SHRINK_PART))))
        return None
