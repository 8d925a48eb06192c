"""Probes without a program in the kernel: they read what it offers, once or twice, and compare."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tegu.linux.libbpf import KernelTypes
from tegu.probe.groups import CgroupNames
from tegu.probe.recording import Record
from tegu.probe.tool import Settings, Tool

__all__ = [
    "PROC",
    "Reading",
    "cgroup_of",
    "groups_below",
    "numbers",
    "pids",
    "realtime_offset",
]

PROC = Path("/proc")


class Reading(Tool):
    """Base of probes that look at files and netlink; `object_name` is empty."""

    object_name = ""
    selects = False
    overhead = "what it takes to read those files, at the start and at the end"

    def unavailable(self) -> str:
        """Say why this machine cannot answer; nothing when it can."""
        return ""

    def check(self, types: KernelTypes) -> None:
        """Nothing of the kernel's types is needed."""

    def look(self, settings: Settings) -> Any:
        """Return what there is to see now."""
        raise NotImplementedError

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        """Return the summary of two looks; of an instant probe both are the same."""
        raise NotImplementedError

    def between(self) -> Iterable[Record]:
        """Yield events, some times a second while the probe runs; most have none."""
        return ()

    def lines(self, event: Record) -> list[str]:
        """Return an event in words."""
        return []


def pids(proc: Path = PROC) -> Iterator[int]:
    """Yield the processes there are."""
    with os.scandir(proc) as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def cgroup_of(pid: int, proc: Path = PROC) -> str:
    """Return the cgroup of a process: version 2's, or the cpu controller's of version 1."""
    found = ""
    try:
        text = (proc / str(pid) / "cgroup").read_text(errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) < 3:
            continue
        if "cpu" in fields[1].split(","):
            return fields[2]
        if not fields[1]:
            found = fields[2]
    return found


def groups_below(names: CgroupNames) -> Iterator[tuple[str, Path]]:
    """Yield each cgroup of a hierarchy with its directory, the root first."""
    if names.root is None:
        return
    pending = [("/", names.root)]
    while pending:
        name, directory = pending.pop()
        yield name, directory
        try:
            with os.scandir(directory) as entries:
                pending.extend(
                    (f"{name.rstrip('/')}/{e.name}", directory / e.name)
                    for e in entries
                    if e.is_dir(follow_symlinks=False)
                )
        except OSError:
            continue  # removed while we looked


def numbers(path: Path) -> Mapping[str, int]:
    """Return a file of lines `name number`; what is missing or different is left out."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        try:
            found[name.rstrip(":")] = int(value)
        except ValueError:
            continue
    return found


def realtime_offset() -> float:
    """Return how far the time of day is ahead of the time since boot, in seconds."""
    return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
