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
from pathlib import Path
from typing import Any

from tegu.linux.cgroup2 import find_hierarchy, flat_keyed
from tegu.qos import Place, apply, parse_policy, undo

ROOT = Path("/sys/fs/cgroup")
FEED = Path("/run/feed")
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


def trial(s: dict[str, Any], control: dict[str, Any]) -> None:
    """Measure one control: groups, latency client, batch work, what the controller did."""
    groups = control["groups"]
    for name in ("web", "batch", "tegu"):
        (ROOT / name).mkdir(exist_ok=True)
    FEED.unlink(missing_ok=True)
    for path, value in control.get("write", []):
        Path(path).write_text(value)
    place = Place.here()
    policy = parse_policy(control["policy"], control["name"]) if "policy" in control else None
    if policy is not None:
        applied = apply(policy, place)
        for refusal in applied.refused:
            say("refused", what=refusal.what, why=refusal.why)
    server = serve(s, groups)
    batch = []
    if control["name"] != "alone":
        batch = [start(s["batch"], "batch" if groups else None)]
    daemon = None
    if control.get("daemon"):
        Path("/run/policy.toml").write_text(control["policy"])
        daemon = start([sys.executable, "-S", "-m", "tegu.qos.daemon", "/run/policy.toml"], "tegu")
        time.sleep(3)  # Python starts slowly in so slow a guest
    time.sleep(s.get("warm", 0.5))
    phases = control.get("phases", s["phases"])
    client = [a.replace("PHASES", phases).replace("FEED", str(FEED)) for a in s["client"]]
    inside = "web" if groups and "server" not in s else None
    measured = start(client, inside)
    for process in batch:
        process.send_signal(signal.SIGUSR1)
    peer = Peer("batch") if control.get("peer") else None
    while peer is not None and measured.poll() is None:
        time.sleep(1)
        peer.step()
    out, _ = measured.communicate()
    if measured.returncode:
        raise SystemExit(f"{' '.join(client)} ended with {measured.returncode}")
    work = 0.0
    for process in batch:
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate()
        raw = json.loads(text)
        work += raw["done"] / raw["seconds"]
    if daemon is not None:
        daemon.send_signal(signal.SIGTERM)
        say("daemon", text=daemon.communicate()[0][-3000:])
    if server is not None:
        server.kill()
        server.wait()
    if policy is not None and daemon is None:
        left = undo(place)
        say("undone", restored=len(left.restored), conflicts=left.conflicts, failed=left.failed)
    for name in ("web", "batch", "tegu"):
        (ROOT / name).rmdir()
    for path, value in control.get("restore", []):
        Path(path).write_text(value)
    say("result", control=control["name"], work=work, **json.loads(out))


def main() -> None:
    """Run /scenario.json."""
    scenario = json.loads(Path("/scenario.json").read_text())
    find_hierarchy()
    (ROOT / "cgroup.subtree_control").write_text("+cpu +io +memory")
    say("cmdline", text=Path("/proc/version").read_text().strip())
    for control in scenario["controls"]:
        if control.get("drop"):
            Path("/proc/sys/vm/drop_caches").write_text("3")
        trial(scenario, control)
    say("end")


if __name__ == "__main__":
    main()
