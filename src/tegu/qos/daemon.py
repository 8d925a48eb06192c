"""The resident loop: static layer, then one window after another, then everything back.

`python -m tegu.qos.daemon POLICY` or `tegu qos serve`; tegu-qos.service runs it. When it dies the
static layer stays, and the next start takes back what the loop had limited. The state of the last
window is in /run/tegu/qos.state, for `tegu qos top` and the Prometheus endpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import TeguError, UsageError
from tegu.files import write_atomic
from tegu.qos.controller import Controller, Decision
from tegu.qos.feeds import FeedError, Reading, Source, open_feed
from tegu.qos.knobs import Knobs
from tegu.qos.layer import Place, apply_locked
from tegu.qos.policy import ClassName, Knob, Policy, load_policy

__all__ = ["Daemon", "main", "notify", "serve"]

LOOK_AGAIN = 10
"""Windows after which groups are matched again: pods and units come and go."""


@dataclass
class Daemon:
    """One policy being kept; `window` does one step."""

    policy: Policy
    place: Place
    source: Source
    controller: Controller
    knobs: Knobs
    members: Mapping[ClassName, Sequence[str]]
    number: int = 0

    @classmethod
    def start(cls, policy: Policy, place: Place) -> Daemon:
        """Write the static layer and open the feed; the lock must be held."""
        if policy.objective is None:
            raise UsageError(
                f"{policy.source}: there is no [slo], so there is nothing to keep",
                hint="`tegu qos apply` writes the static layer alone",
            )
        knobs = Knobs(place, policy.loop)
        found = apply_locked(policy, place).members
        source = open_feed(policy.objective.feed, found["latency"])
        controller = Controller(policy.loop, policy.objective.p99)
        return cls(policy, place, source, controller, knobs, found)

    def window(self, now: float) -> Decision:
        """Read, decide, write. `now` is a monotonic time in seconds."""
        self.number += 1
        if self.number % LOOK_AGAIN == 0:
            self._look_again()
        reading: Reading | str
        try:
            reading = self.source.read()
        except FeedError as e:
            reading = e.message
        pressure = self._pressure()
        decision = self.controller.step(now, reading, pressure)
        failed = self.knobs.set(now, decision.knobs, self.members["batch"])
        self._tell(reading, decision, pressure, failed)
        return decision

    def _look_again(self) -> None:
        kept = frozenset(self.knobs.targets(self.members["batch"]))
        with suppress(TeguError):  # nothing matches any more: keep what there is
            self.members = apply_locked(self.policy, self.place, keep=kept).members

    def _pressure(self) -> dict[Knob, float]:
        found: dict[Knob, float] = {}
        for knob in self.policy.loop.knobs:
            lines = [self.place.hierarchy.pressure(g, knob) for g in self.members["latency"]]
            found[knob] = max((line.avg10 for line in lines if line), default=0.0)
        return found

    def _tell(
        self,
        reading: Reading | str,
        decision: Decision,
        pressure: Mapping[Knob, float],
        failed: Sequence[str],
    ) -> None:
        assert self.policy.objective is not None
        state: dict[str, Any] = {
            "time": time.time(),
            "slo": self.policy.objective.p99,
            "p99": None if isinstance(reading, str) else reading.p99,
            "samples": None if isinstance(reading, str) else reading.samples,
            "state": decision.state,
            "why": decision.why,
            "knobs": dict(decision.knobs),
            "pressure": dict(pressure),
            "members": {k: list(v) for k, v in self.members.items()},
            "failed": list(failed),
        }
        path = self.place.journal.path.with_suffix(".state")
        with suppress(OSError):
            write_atomic(path, json.dumps(state))


def serve(policy: Policy, place: Place, stop: threading.Event, listen: str = "") -> None:
    """Keep `policy` until `stop` is set, then restore everything.

    What a former run left limited is restored before the first window. `listen` is HOST:PORT of a
    Prometheus endpoint. Raises TeguError when it cannot begin.
    """
    from tegu.qos.exposition import endpoint

    with place.journal.locked():
        daemon = Daemon.start(policy, place)
        try:
            with endpoint(listen, place.journal.path.with_suffix(".state")):
                notify("READY=1")
                _windows(daemon, stop, policy.loop.window)
        finally:
            notify("STOPPING=1")
            daemon.source.close()
            place.journal.undo()
            place.journal.path.with_suffix(".state").unlink(missing_ok=True)


def _windows(daemon: Daemon, stop: threading.Event, length: float) -> None:
    due = time.monotonic()
    last = ""
    while not stop.is_set():
        decision = daemon.window(time.monotonic())
        said = f"{decision.state}: {decision.why}"
        notify(f"WATCHDOG=1\nSTATUS={said}")
        if decision.state != last and decision.state not in ("cooling", "waiting"):
            print(said, flush=True)
        last = decision.state
        due = max(due + length, time.monotonic())
        stop.wait(due - time.monotonic())


def notify(text: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens where it does not listen."""
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect("\0" + address[1:] if address.startswith("@") else address)
        client.send(text.encode())


def main(argv: Sequence[str]) -> int:
    """Run as a program: `POLICY`; returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve(load_policy(Path(argv[0])), Place.here(), stop)
    except TeguError as e:
        print(f"tegu: {e.message}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
