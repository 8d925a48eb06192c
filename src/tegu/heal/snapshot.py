"""What this machine's counters say at one moment: /proc, /sys, and the control groups.

A file that is not there (another kernel, another configuration) leaves its part empty; rules then
find nothing. Sources: proc(5), Documentation/accounting/psi.rst, admin-guide/cgroup-v2.rst,
admin-guide/iostats.rst.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

__all__ = [
    "Disk",
    "Group",
    "Pressure",
    "Process",
    "Snapshot",
    "parse_pressure",
    "parse_stat",
    "take",
]

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Pressure:
    """Microseconds in all that some, or all, tasks of a group waited for a resource."""

    some_us: int = 0
    full_us: int = 0


@dataclass(frozen=True)
class Group:
    """A control group of version 2: what its files say, by file and key."""

    path: str
    """Below the root of the hierarchy; "/" is the root."""
    directory: Path
    values: dict[str, int] = field(default_factory=dict)
    """"cpu.stat/usage_usec", "memory.current", "memory.events/oom_kill" ... ; "max" is -1.
    "refaults": pages read again soon after they were given up."""
    pressure: dict[str, Pressure] = field(default_factory=dict)
    """Of "cpu", "memory" and "io"."""

    def get(self, key: str) -> int:
        """Return a value, or 0 where this group has no such file."""
        return self.values.get(key, 0)

    def limit(self, key: str) -> int | None:
        """Return a limit; None when there is none."""
        value = self.values.get(key, -1)
        return None if value < 0 else value

    @cached_property
    def memory(self) -> dict[str, int]:
        """memory.stat, read when it is asked for: it is the longest of all."""
        return _table(self.directory / "memory.stat")


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its state and times (proc_pid_stat(5))."""

    pid: int
    comm: str
    state: str
    parent: int
    kernel: bool
    cpu_s: float
    started: int
    """In ticks since the boot: tells a process from a later one with its number."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device's counters (Documentation/admin-guide/iostats.rst)."""

    reads: int
    read_ms: int
    writes: int
    write_ms: int
    in_flight: int
    busy_ms: int


@dataclass(frozen=True)
class Snapshot:
    """All of it, at `at` (CLOCK_MONOTONIC, seconds)."""

    at: float = 0.0
    wall: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds of all processors together by kind: user, nice, system, idle, iowait, irq ..."""
    memory: dict[str, int] = field(default_factory=dict)
    """/proc/meminfo, in bytes."""
    vm: dict[str, int] = field(default_factory=dict)
    pressure: dict[str, Pressure] = field(default_factory=dict)
    net: dict[str, int] = field(default_factory=dict)
    """"Tcp.RetransSegs", "TcpExt.TW" ...: /proc/net/snmp and netstat."""
    groups: dict[str, Group] = field(default_factory=dict)
    processes: dict[int, Process] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    dentries: tuple[int, ...] = ()
    """/proc/sys/fs/dentry-state: all, unused, age limit, want pages, negative."""


def take(root: Path = Path("/")) -> Snapshot:
    """Read everything now; takes some tens of milliseconds on a machine with 100 processes."""
    proc = root / "proc"
    return Snapshot(
        time.monotonic(),
        time.time(),
        _cpu(proc / "stat"),
        {k: v * 1024 for k, v in _table(proc / "meminfo").items()},
        _table(proc / "vmstat"),
        _pressures(proc / "pressure", ""),
        {**_net(proc / "net/snmp"), **_net(proc / "net/netstat")},
        _groups(root),
        processes(proc),
        _disks(proc / "diskstats"),
        tuple(_numbers(proc / "sys/fs/dentry-state")),
    )


def text(path: Path | str) -> str:
    """Return a file's text; nothing when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:  # noqa: PTH123 - thousands
            return f.read()
    except OSError:
        return ""


def _numbers(path: Path) -> list[int]:
    return [int(w) for w in text(path).split() if w.lstrip("-").isdigit()]


def _table(path: Path) -> dict[str, int]:
    """Return lines of `key number` or `key: number unit`."""
    found: dict[str, int] = {}
    for line in text(path).splitlines():
        words = line.split()
        if len(words) >= 2:
            with suppress(ValueError):
                found[words[0].rstrip(":")] = int(words[1])
    return found


def parse_pressure(content: str) -> Pressure:
    """Read a pressure file: lines of `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`."""
    totals = {}
    for line in content.splitlines():
        kind, _, rest = line.partition(" ")
        number = rest.rpartition("total=")[2]
        if number.isdigit():
            totals[kind] = int(number)
    return Pressure(totals.get("some", 0), totals.get("full", 0))


def _pressures(directory: Path, suffix: str) -> dict[str, Pressure]:
    return {n: parse_pressure(text(directory / f"{n}{suffix}")) for n in ("cpu", "memory", "io")}


def _cpu(path: Path) -> dict[str, float]:
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    for line in text(path).splitlines():
        if line.startswith("cpu "):
            return {n: int(v) / _TICK for n, v in zip(names, line.split()[1:], strict=False)}
    return {}


def _net(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    lines = text(path).splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        kind, _, words = names.partition(":")
        numbers = values.partition(":")[2].split()
        for name, number in zip(words.split(), numbers, strict=False):
            with suppress(ValueError):
                found[f"{kind}.{name}"] = int(number)
    return found


def parse_stat(line: str) -> Process | None:
    """Read /proc/PID/stat; a program may have put parentheses and spaces into its name."""
    head, _, rest = line.rpartition(")")
    pid, _, comm = head.partition(" (")
    words = rest.split()
    if not pid.isdigit() or len(words) < 20:
        return None
    try:
        return Process(
            int(pid),
            "".join(c if c.isprintable() else "?" for c in comm),
            words[0],
            int(words[1]),
            bool(int(words[6]) & 0x00200000),  # PF_KTHREAD, include/linux/sched.h
            (int(words[11]) + int(words[12])) / _TICK,
            int(words[19]),
        )
    except ValueError:
        return None


def processes(proc: Path) -> dict[int, Process]:
    """Return all processes, by pid."""
    found = {}
    for name in os.listdir(proc):  # noqa: PTH208 - thousands of them
        if name.isdigit():
            process = parse_stat(text(f"{proc}/{name}/stat"))
            if process is not None:
                found[process.pid] = process
    return found


def _disks(path: Path) -> dict[str, Disk]:
    found = {}
    for line in text(path).splitlines():
        words = line.split()
        if len(words) >= 14:
            with suppress(ValueError):
                n = [int(w) for w in words[3:14]]
                found[words[2]] = Disk(n[0], n[3], n[4], n[7], n[8], n[9])
    return found


_SINGLE = (
    "memory.current",
    "memory.high",
    "memory.max",
    "memory.swap.current",
    "pids.current",
    "pids.max",
)
_TABLES = ("cpu.stat", "memory.events", "cgroup.stat", "pids.events")
_EMPTY = ("memory.current",)
_EMPTY_TABLES = ("cgroup.stat",)
_WORTH = 8 << 20
"""Bytes: smaller groups do not thrash, and memory.stat is dear."""


def hierarchy(root: Path = Path("/")) -> Path | None:
    """Return where version 2 is mounted with the memory controller; None where it is not."""
    for line in text(root / "proc/self/mountinfo").splitlines():
        words = line.split()
        if "-" in words and words[words.index("-") + 1] == "cgroup2":
            base = root / words[4].lstrip("/")
            if "memory" in text(base / "cgroup.controllers").split():
                return base
    return None


def _groups(root: Path) -> dict[str, Group]:
    base = hierarchy(root)
    if base is None:
        return {}
    found: dict[str, Group] = {}
    pending = [(str(base), "/")]
    while pending:
        directory, path = pending.pop()
        try:
            with os.scandir(directory) as entries:
                children = [
                    (e.path, f"{path.rstrip('/')}/{e.name}")
                    for e in entries
                    if e.is_dir(follow_symlinks=False)
                ]
        except OSError:
            continue  # removed while we looked
        pending += children
        found[path] = _group(directory, path)
    return found


def _group(directory: str, path: str) -> Group:
    values: dict[str, int] = {}
    # A group in which nothing runs, nor below it, waits for nothing: one of many reads less.
    empty = "populated 0" in text(f"{directory}/cgroup.events")
    for name in _EMPTY if empty else _SINGLE:
        word = text(f"{directory}/{name}").strip()
        if word:
            values[name] = -1 if word == "max" else int(word)
    for name in _EMPTY_TABLES if empty else _TABLES:
        for line in text(f"{directory}/{name}").splitlines():
            key, _, value = line.partition(" ")
            if value.isdigit():
                values[f"{name}/{key}"] = int(value)
    if empty:
        return Group(path, Path(directory), values)
    if values.get("memory.current", 0) >= _WORTH:
        stat = _table(Path(directory) / "memory.stat")
        values["refaults"] = sum(
            stat.get(f"workingset_refault_{kind}", 0) for kind in ("file", "anon")
        )
    words = text(f"{directory}/cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        values["cpu.max/quota"], values["cpu.max/period"] = int(words[0]), int(words[1])
    return Group(path, Path(directory), values, _pressures(Path(directory), ".pressure"))
