"""What runs in the guest of bench/qos: one question, each control in turn, figures to the console.

The first process (busybox) starts it. /scenario.json says what to do; each result is a line that
begins with `@@ `. Tegu's own code makes the groups and moves the knobs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.linux.cgroup2 import find_hierarchy, flat_keyed
from tegu.qos import Place, apply, parse_policy, undo

ROOT = Path("/sys/fs/cgroup")
FEED = Path("/run/feed")
GROUPS = ("web", "batch", "tegu")
CAPACITY = 100_000
"""Microseconds of one processor in a period of 100 ms, as in cpu.max."""


def say(name: str, **what: Any) -> None:
    """Write a line that the host reads."""
    print("@@ " + json.dumps({"name": name, **what}), flush=True)


def start(argv: list[str], group: str | None) -> subprocess.Popen[str]:
    """Start a program in a group, nothing of it outside."""

    def enter() -> None:
        if group is not None:
            (ROOT / group / "cgroup.procs").write_text(str(os.getpid()))

    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=enter)  # noqa: PLW1509


class Peer:
    """Koordinator's way: batch gets 65 % of the machine less what others use, +10 % at most.

    As its documentation and source describe the CPU suppress of the cfs quota kind: every second
    quota = 65 % of capacity - (all use - use of batch), not below 2 ms in 100, a change of less
    than 1 % is left out, a growth is at most 10 % of capacity; batch has the smallest weight.
    """

    def __init__(self, group: str) -> None:
        self.group = ROOT / group
        (self.group / "cpu.weight").write_text("1")
        self.quota = CAPACITY
        self.before = self._used()

    def _used(self) -> tuple[int, int, float]:
        everything = flat_keyed((ROOT / "cpu.stat").read_text())["usage_usec"]
        batch = flat_keyed((self.group / "cpu.stat").read_text())["usage_usec"]
        return everything, batch, time.monotonic()

    def step(self) -> None:
        """One second's decision."""
        used = self._used()
        seconds = used[2] - self.before[2]
        others = (used[0] - self.before[0] - (used[1] - self.before[1])) / seconds / 10
        self.before = used
        wanted = max(2000, 0.65 * CAPACITY - others)
        wanted = min(wanted, self.quota + 0.1 * CAPACITY)
        if abs(wanted - self.quota) >= 0.01 * CAPACITY:
            self.quota = int(wanted)
            (self.group / "cpu.max").write_text(f"{self.quota} {CAPACITY}")


def serve(s: dict[str, Any], groups: bool) -> subprocess.Popen[str] | None:
    """Start the server, if the load has one, and fill it."""
    if "server" not in s:
        return None
    server = start(s["server"], "web" if groups else None)
    time.sleep(1)
    for command in s["fill"]:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return server


@dataclass
class Trial:
    """One control: what is running for it, and what it wrote."""

    load: dict[str, Any]
    control: dict[str, Any]
    place: Place
    server: subprocess.Popen[str] | None = None
    batch: subprocess.Popen[str] | None = None
    daemon: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Make the groups, apply the control, start server, batch work and daemon."""
        control, groups = self.control, self.control["groups"]
        for name in GROUPS:
            (ROOT / name).mkdir(exist_ok=True)
        FEED.unlink(missing_ok=True)
        for path, value in control.get("write", []):
            Path(path).write_text(value)
        if "policy" in control:
            applied = apply(parse_policy(control["policy"], control["name"]), self.place)
            for refusal in applied.refused:
                say("refused", what=refusal.what, why=refusal.why)
        self.server = serve(self.load, groups)
        if control["name"] != "alone":
            self.batch = start(self.load["batch"], "batch" if groups else None)
        if control.get("daemon"):
            Path("/run/policy.toml").write_text(control["policy"])
            argv = [sys.executable, "-S", "-m", "tegu.qos.daemon", "/run/policy.toml"]
            self.daemon = start(argv, "tegu")
            time.sleep(3)  # Python starts slowly in so slow a guest
        time.sleep(self.load.get("warm", 0.5))

    def measure(self) -> dict[str, Any]:
        """Run the client; batch work counts from the end of the lead on."""
        phases, lead = self.load["phases"], self.load.get("lead", 0)
        if not lead and (lead := self.control.get("lead", 0)):
            phases = f"{phases.partition(':')[0]}:{lead},{phases}"
        told = {"PHASES": phases, "FEED": str(FEED)}
        client = [told.get(a, a) for a in self.load["client"]]
        inside = "web" if self.control["groups"] and self.server is None else None
        measured = start(client, inside)
        time.sleep(lead)
        if self.batch is not None:
            self.batch.send_signal(signal.SIGUSR1)
        peer = Peer("batch") if self.control.get("peer") else None
        while peer is not None and measured.poll() is None:
            time.sleep(1)
            peer.step()
        out, _ = measured.communicate()
        if measured.returncode:
            raise SystemExit(f"{' '.join(client)} ended with {measured.returncode}")
        found: dict[str, Any] = json.loads(out)
        found["work"] = 0.0
        if self.batch is not None:
            self.batch.send_signal(signal.SIGTERM)
            raw = json.loads(self.batch.communicate()[0])
            found["work"] = raw["done"] / raw["seconds"]
        return found

    def end(self) -> None:
        """Stop everything, and see that nothing is left."""
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            say("daemon", text=self.daemon.communicate()[0][-3000:])
        if self.server is not None:
            self.server.kill()
            self.server.wait()
        if "policy" in self.control and self.daemon is None:
            left = undo(self.place)
            say("undone", restored=len(left.restored), conflicts=left.conflicts, failed=left.failed)
        for name in GROUPS:
            (ROOT / name).rmdir()
        for path, value in self.control.get("restore", []):
            Path(path).write_text(value)


def main() -> None:
    """Run /scenario.json."""
    scenario = json.loads(Path("/scenario.json").read_text())
    find_hierarchy()
    (ROOT / "cgroup.subtree_control").write_text("+cpu +io +memory")
    say("cmdline", text=Path("/proc/version").read_text().strip())
    for control in scenario["controls"]:
        if control.get("drop"):
            Path("/proc/sys/vm/drop_caches").write_text("3")
        trial = Trial(scenario, control, Place.here())
        trial.begin()
        found = trial.measure()
        trial.end()
        say("result", control=control["name"], **found)
    say("end")


if __name__ == "__main__":
    main()
