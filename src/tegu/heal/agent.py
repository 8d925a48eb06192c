"""The resident doctor: looks every few seconds, sooner under pressure, keeps what it finds.

Between two looks it sleeps in poll(2) on pressure triggers (Documentation/accounting/psi.rst):
half a second of stall within two wakes it. It repairs by itself only what the policy names.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tegu.errors import TeguError
from tegu.heal import snapshot
from tegu.heal.closer import Closer, LookCloser
from tegu.heal.doctor import Diagnosis, closely, examine
from tegu.heal.history import HISTORY, Change, History
from tegu.heal.journal import Journal
from tegu.heal.look import Look
from tegu.heal.policy import load_policy
from tegu.heal.repair import Repair, repair
from tegu.heal.rules import RULES, find_rule
from tegu.heal.state import STATE, Tally, write_state
from tegu.linux import libc

__all__ = ["Agent", "run_agent"]

_SOONEST = 2.0  # seconds between looks under pressure
_TRIGGER = b"some 500000 2000000\0"  # microseconds of stall, and within which time


class Agent:
    """Looks again and again; `tell` gets each line worth saying."""

    def __init__(
        self,
        *,
        every: float = 15.0,
        database: Path = HISTORY,
        journal: Path | None = None,
        state: Path = STATE,
        closer: LookCloser | None = None,
        tell: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self.every = every
        self._tell = tell
        self._rules = [find_rule(name) for name in RULES]
        self._journal = Journal() if journal is None else Journal(journal)
        self._database = database
        self._history: History | None = None
        self._state = state
        self._closer = closer or Closer()
        self._tally = Tally()
        self._said: set[str] = set()
        self._before = snapshot.take()

    def step(self) -> Diagnosis:
        """Look once: from the last snapshot to now; note, and repair what may be."""
        after = snapshot.take()
        seen = Look(self._before, after)
        diagnosis = self._closely(seen, examine(seen, self._rules))
        self._before = after
        for name, why in diagnosis.failures.items():
            self._once(f"the rule {name} failed: {why}")
        for change in self._note(diagnosis):
            self._tell(f"{change.what}: {change.severity}: {change.title}")
        repairs = self._repair(diagnosis)
        for done in repairs:
            self._tell(f"{done.outcome}: {done.remedy} for {done.finding.key} {done.detail}")
        self._tally.add(diagnosis, repairs)
        try:
            write_state(self._state, diagnosis, after, self._tally, self.every)
        except OSError as e:
            self._once(f"no state for exports: {self._state}: {e.strerror}")
        return diagnosis

    def _closely(self, seen: Look, diagnosis: Diagnosis) -> Diagnosis:
        """Let probes say what they know where there is pressure; without them, go on."""
        try:
            found = closely(seen, diagnosis, self._closer)
        except Exception as e:  # noqa: BLE001 - as a rule's: it must not end what looks
            self._once(f"no closer look: {type(e).__name__}: {e}".split("\n", 1)[0])
            return diagnosis
        self._said = {line for line in self._said if not line.startswith("no closer look")}
        return found

    def _note(self, diagnosis: Diagnosis) -> list[Change]:
        try:
            if self._history is None:
                self._history = History(self._database)
            changes = self._history.note(diagnosis.time, diagnosis.findings)
        except TeguError as e:
            # A full disk is what this program is there to tell of: it goes on without a history.
            self._once(f"no history: {e.message}")
            if self._history is not None:
                self._history.close()
                self._history = None
            return []
        self._said = {line for line in self._said if not line.startswith("no history")}
        return changes

    def _repair(self, diagnosis: Diagnosis) -> list[Repair]:
        try:
            policy = load_policy()
        except TeguError as e:
            self._once(e.message)
            return []
        may = [f for f in diagnosis.findings if f.remedy in policy.automatic]
        if not may:
            return []
        done = []
        for finding in may:
            try:
                (one,) = repair([finding], apply=True, policy=policy, journal=self._journal)
            except TeguError as e:
                self._once(e.message)
                continue
            if one.outcome == "refused":
                self._once(f"not repaired: {finding.key}: {one.detail}")
            else:
                done.append(one)
        return done

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._tell(line)

    def run(self, stop: threading.Event, wake: int) -> None:
        """Look until `stop` is set; `wake` is a descriptor that becomes readable then."""
        with _triggers() as triggers:
            poll = select.poll()
            poll.register(wake, select.POLLIN)
            for fd in triggers:
                poll.register(fd, select.POLLPRI)
            while not stop.is_set():
                poll.poll(self.every * 1000)
                left = _SOONEST - (time.monotonic() - self._before.at)
                if left > 0:
                    stop.wait(left)
                if not stop.is_set():
                    self.step()
                    libc.trim_memory()

    def close(self) -> None:
        """Close the history."""
        if self._history is not None:
            self._history.close()
            self._history = None


@contextlib.contextmanager
def _triggers() -> Iterator[list[int]]:
    """Open pressure triggers for memory and I/O; none where the kernel has none."""
    opened: list[int] = []
    try:
        for name in ("memory", "io"):
            try:
                fd = os.open(f"/proc/pressure/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.write(fd, _TRIGGER)
                opened.append(fd)
            except OSError:
                os.close(fd)
        yield opened
    finally:
        for fd in opened:
            os.close(fd)


def run_agent(
    every: float = 15.0, database: Path = HISTORY, state: Path = STATE, *, closer: bool = True
) -> None:
    """Run until SIGINT or SIGTERM. With `closer`, probes look where there is pressure."""
    import signal

    stop = threading.Event()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def told(_: int, __: object) -> None:
        stop.set()
        os.write(writer, b"x")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, told)
    agent = Agent(
        every=every,
        database=database,
        state=state,
        closer=None if closer else lambda _, found: list(found),
    )
    print(f"looking every {every:g} s by {len(RULES)} rules", flush=True)
    try:
        agent.run(stop, reader)
    finally:
        agent.close()


if __name__ == "__main__":  # the service: without the front door, which takes as much memory again
    try:
        run_agent()
    except TeguError as e:
        sys.exit(f"tegu: {e.message}")
