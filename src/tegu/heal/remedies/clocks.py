"""The clock: set to what the hardware says, when no time daemon stands behind it."""

from __future__ import annotations

import time

from tegu.heal.clock import read_clock
from tegu.heal.finding import Finding
from tegu.heal.remedy import Refused, Remedy, State

__all__ = ["SetClock"]


class SetClock(Remedy):
    """Set the system's clock to the hardware's, as hwclock(8) --hctosys does."""

    name = "set-clock"
    summary = "set the clock to the hardware clock's time"
    blast = "machine"

    def prepare(self, finding: Finding) -> State:
        clock = read_clock()
        if clock.synchronised:
            raise Refused("a time daemon follows a reference now: it knows better")
        if clock.hardware_ahead is None:
            raise Refused("there is no hardware clock")
        if abs(clock.hardware_ahead) < 2:
            raise Refused("the clocks agree")
        return {"step": clock.hardware_ahead}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"hwclock --hctosys  # a step of {state['step']:+.1f} s"]

    def apply(self, finding: Finding, state: State) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + state["step"])

    def undo(self, finding: Finding, state: State) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - state["step"])
