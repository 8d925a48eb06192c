"""A look at the machine: its counters before and after some seconds, and all that stands still.

Rules read from here and nowhere else, so that each thing is read once, and a test can say what a
rule sees: every part may be set.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.heal import snapshot
from tegu.heal.finding import Subject, unit_of
from tegu.heal.snapshot import Group, Process, Snapshot

if TYPE_CHECKING:
    from tegu.heal.clock import Clock
    from tegu.heal.filesystems import FileSystem
    from tegu.heal.resolver import Server
    from tegu.heal.units import Unit
    from tegu.linux.conntrack import Flow
    from tegu.linux.kernel_log import Event
    from tegu.linux.mountinfo import Namespace
    from tegu.linux.sockdiag import TcpSocket

__all__ = ["Look", "look"]


@dataclass
class Look:
    """What rules may ask. Differences are between `before` and `after`, `seconds` apart."""

    before: Snapshot
    after: Snapshot
    root: Path = Path("/")
    own_pid: int = field(default_factory=os.getpid)

    @property
    def seconds(self) -> float:
        """How long it looked."""
        return max(self.after.at - self.before.at, 1e-3)

    @property
    def proc(self) -> Path:
        """Where the processes are."""
        return self.root / "proc"

    @cached_property
    def own_group(self) -> str:
        """The control group of this very program, which is not to be blamed for looking."""
        return self.group_of(self.own_pid)

    @cached_property
    def hierarchy(self) -> Path | None:
        """The root of cgroup version 2, where that has the memory controller."""
        return snapshot.hierarchy(self.root)

    def grown(self, group: Group, key: str) -> int:
        """Return how much a counter of `group` (of `after`) grew; 0 for a group that is new."""
        old = self.before.groups.get(group.path)
        return max(0, group.get(key) - old.get(key)) if old is not None else 0

    def stalled(self, group: Group, resource: str) -> float:
        """Return the share of the time, 0 to 1, in which some task of `group` waited."""
        old = self.before.groups.get(group.path)
        new = group.pressure.get(resource)
        if old is None or new is None or resource not in old.pressure:
            return 0.0
        return max(0.0, (new.some_us - old.pressure[resource].some_us) / 1e6 / self.seconds)

    def net(self, key: str) -> int:
        """Return how much a counter of the network grew."""
        return max(0, self.after.net.get(key, 0) - self.before.net.get(key, 0))

    def vm(self, key: str) -> int:
        """Return how much a counter of /proc/vmstat grew."""
        return max(0, self.after.vm.get(key, 0) - self.before.vm.get(key, 0))

    def leaves(self) -> list[Group]:
        """Return the groups of `after` that have no group below them, but for our own."""
        paths = self.after.groups
        inner = {p.rpartition("/")[0] or "/" for p in paths if p != "/"}
        return [g for p, g in paths.items() if p not in inner and p != self.own_group]

    def group_of(self, pid: int) -> str:
        """Return the path of a process's version 2 group; "/" where it cannot be told."""
        for line in snapshot.text(f"{self.proc}/{pid}/cgroup").splitlines():
            if line.startswith("0::"):
                return line[3:].removesuffix(" (deleted)")
        return "/"

    def process(self, pid: int) -> Subject:
        """Return a process with its unit."""
        found = self.after.processes.get(pid)
        name = found.comm if found else f"pid {pid}"
        return Subject("process", name, pid, unit_of(self.group_of(pid)))

    def stuck(self) -> list[Process]:
        """Return the processes in state D, at both ends of the look (kernel threads too)."""
        return [
            p
            for pid, p in self.after.processes.items()
            if p.state == "D"
            and pid in self.before.processes
            and self.before.processes[pid].state == "D"
            and self.before.processes[pid].started == p.started
        ]

    def stack(self, pid: int) -> tuple[str, ...]:
        """Return the kernel's stack of a process, innermost first; needs CAP_SYS_ADMIN."""
        lines = snapshot.text(f"{self.proc}/{pid}/stack").splitlines()
        return tuple(
            line.partition("] ")[2].partition("+")[0] or line.strip() for line in lines if line
        )

    @cached_property
    def log(self) -> list[Event]:
        """What the kernel has said, as events."""
        from tegu.linux.kernel_log import read_log

        return read_log()

    @cached_property
    def filesystems(self) -> list[FileSystem]:
        """The mounted file systems that have a size."""
        from tegu.heal.filesystems import file_systems

        return file_systems(self.root)

    @cached_property
    def namespaces(self) -> list[Namespace]:
        """The mount namespaces there are; the first is that of process 1."""
        from tegu.linux.mountinfo import namespaces

        return namespaces(self.proc, sorted(self.after.processes))

    @cached_property
    def time_wait(self) -> list[TcpSocket]:
        """The sockets in TIME-WAIT; none where the kernel will not tell."""
        from tegu.linux.sockdiag import TIME_WAIT, tcp_sockets

        if self.after.net.get("TcpExt.TW", 0) == 0:
            return []
        try:
            return list(tcp_sockets([TIME_WAIT]))
        except OSError:
            return []

    @cached_property
    def flows(self) -> list[Flow]:
        """The tracked connections; none where the kernel will not tell."""
        from tegu.linux.conntrack import flows

        try:
            return list(flows())
        except OSError:
            return []

    @cached_property
    def servers(self) -> list[Server]:
        """The name servers that this machine is told to ask, each asked once."""
        from tegu.heal.resolver import ask_servers

        return ask_servers(self.root)

    @cached_property
    def units(self) -> list[Unit]:
        """systemd's units; none without systemd."""
        from tegu.heal.units import list_units

        return list_units()

    @cached_property
    def clock(self) -> Clock:
        """The clocks, beside each other."""
        from tegu.heal.clock import read_clock

        return read_clock(self.root)

    @cached_property
    def log_lines(self) -> dict[str, int]:
        """Lines that units wrote to the journal during the look, by unit."""
        from tegu.heal.units import journal_lines

        return journal_lines(self.before.wall)

    def number(self, path: str) -> int | None:
        """Return the number in a file below /proc or /sys; None when there is none."""
        word = snapshot.text(self.root / path).strip()
        return int(word) if word.lstrip("-").isdigit() else None


def look(seconds: float, stop: threading.Event | None = None) -> Look:
    """Look for so many seconds; shorter when `stop` is set."""
    before = snapshot.take()
    pause = max(0.0, before.at + seconds - time.monotonic())
    if stop is None:
        time.sleep(pause)
    else:
        stop.wait(pause)
    return Look(before, snapshot.take())
