"""Limits that are too low, and neighbours that take too much: set anew, and set back if in vain.

A group of systemd's is set by `systemctl set-property --runtime`, so that systemd does not undo it
at its next look; another one by its file. What was there before is kept for `undo`.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import ClassVar

from tegu.heal.finding import Finding, unit_of
from tegu.heal.remedy import Refused, Remedy, State
from tegu.heal.snapshot import hierarchy, text
from tegu.heal.units import properties
from tegu.process import run

__all__ = [
    "ContainMemory",
    "LowerWeight",
    "RaiseFdLimit",
    "RaiseMemory",
    "RaiseQuota",
    "RaiseTasks",
]


class GroupSetting(Remedy):
    """One file of a control group, and the unit property that stands for it."""

    blast = "cgroup"
    settle = 3.0
    file: ClassVar[str]
    property: ClassVar[str]

    def wanted(self, finding: Finding, old: str, directory: Path) -> str:
        """Return the new content of the file; raises Refused."""
        raise NotImplementedError

    def words(self, value: str) -> str:
        """Return the file's content as the unit property has it."""
        return "infinity" if value == "max" else value

    def file_of(self, directory: Path) -> str:
        """Return which file is set; most have one only."""
        return self.file

    def property_of(self, file: str) -> str:
        """Return the unit property for it."""
        return self.property

    def prepare(self, finding: Finding) -> State:
        root = hierarchy()
        path = str(finding.target["group"])
        unit = unit_of(path) if path.endswith(unit_of(path) or "\0") else ""
        if root is None:
            raise Refused("there is no cgroup hierarchy of version 2")
        directory = root / path.lstrip("/")
        file = self.file_of(directory)
        old = text(directory / file).strip()
        if not old and directory.is_dir():
            raise Refused(f"{path} has no {file}")
        old = old or self._between_starts(unit, file)
        if not old:
            raise Refused(f"{path} is gone")
        return {
            "directory": str(directory),
            "file": file,
            "old": old,
            "new": self.wanted(finding, old, directory),
            "unit": unit,
        }

    def _between_starts(self, unit: str, file: str) -> str:
        """Return the setting of a service that waits to be started again: it has no group then."""
        if not unit:
            return ""
        name = self.property_of(file)
        shown = properties(unit, "ActiveState", name)
        value = shown.get(name, "").replace("infinity", "max")
        waits = shown.get("ActiveState") in ("activating", "active", "reloading")
        return value if waits and (value.isdigit() or value == "max") else ""

    def plan(self, finding: Finding, state: State) -> list[str]:
        if state["unit"]:
            value = f"{self.property_of(state['file'])}={self.words(state['new'])}"
            return [f"systemctl set-property --runtime {state['unit']} {value}"]
        return [f"echo {state['new']} > {state['directory']}/{state['file']}"]

    def apply(self, finding: Finding, state: State) -> None:
        self._set(state, state["new"])

    def undo(self, finding: Finding, state: State) -> None:
        self._set(state, state["old"])

    def _set(self, state: State, value: str) -> None:
        if state["unit"]:
            what = f"{self.property_of(state['file'])}={self.words(value)}"
            run(["systemctl", "set-property", "--runtime", "--", state["unit"], what], timeout=30)
        else:
            (Path(state["directory"]) / state["file"]).write_text(value)


class RaiseMemory(GroupSetting):
    """Double a memory limit, where the machine has twice that to spare."""

    name = "raise-memory"
    summary = "double a memory limit, when the machine has room"
    file = "memory.max"
    property = "MemoryMax"
    settle = 6.0

    def wait(self, finding: Finding) -> float:
        # Kills come at intervals: only when two have passed without one is it over.
        return max(self.settle, min(120.0, 2.2 * float(finding.target.get("interval", 0))))

    def file_of(self, directory: Path) -> str:
        high = text(directory / "memory.high").strip()
        current = text(directory / "memory.current").strip()
        near = high.isdigit() and current.isdigit() and int(current) > 0.9 * int(high)
        return "memory.high" if near else "memory.max"

    def property_of(self, file: str) -> str:
        return "MemoryHigh" if file == "memory.high" else "MemoryMax"

    def wanted(self, finding: Finding, old: str, directory: Path) -> str:
        if not old.isdigit():
            raise Refused(f"{directory.name} has no limit of its own")
        more, room = int(old), _available()
        if 2 * more > room:
            raise Refused(
                f"the machine has {room >> 20} MiB to spare, too little to give {more >> 20} more"
            )
        return str(2 * int(old))


class ContainMemory(GroupSetting):
    """Bound a group that takes its neighbours' memory: half of what they have together."""

    name = "contain-memory"
    summary = "bound a cgroup to half of the memory it shares with others"
    file = "memory.high"
    property = "MemoryHigh"
    settle = 10.0

    def wanted(self, finding: Finding, old: str, directory: Path) -> str:
        room = int(finding.target["room"])
        new = max(room // 2, 16 << 20)
        if old.isdigit() and int(old) <= new:
            raise Refused(f"{directory.name} is bounded to {int(old) >> 20} MiB already")
        return str(new)


class RaiseQuota(GroupSetting):
    """Double a processor quota, where the processors have that to spare."""

    name = "raise-quota"
    summary = "double a processor quota, up to all processors"
    file = "cpu.max"
    property = "CPUQuota"

    def wanted(self, finding: Finding, old: str, directory: Path) -> str:
        quota, _, period = old.partition(" ")
        if not quota.isdigit() or not period.isdigit():
            raise Refused(f"{directory.name} has no quota")
        most = len(os.sched_getaffinity(0)) * int(period)
        if int(quota) >= most:
            raise Refused("its quota is all processors already")
        # One that is stopped in most periods needs far more than it has; weights keep it fair.
        return f"{most} {period}"

    def words(self, value: str) -> str:
        quota, _, period = value.partition(" ")
        if quota == "max":
            return ""
        return f"{100 * int(quota) / int(period):g}%"


class LowerWeight(GroupSetting):
    """Let a group have only what others leave: the lowest weight for its processors."""

    name = "lower-weight"
    summary = "give a cgroup only the processor time that others leave"
    file = "cpu.weight"
    property = "CPUWeight"

    def wanted(self, finding: Finding, old: str, directory: Path) -> str:
        if old == "1":
            raise Refused(f"{directory.name} has the lowest weight already")
        return "1"


class RaiseTasks(GroupSetting):
    """Double the number of tasks that a group may have."""

    name = "raise-tasks"
    summary = "double the number of tasks a cgroup may have"
    file = "pids.max"
    property = "TasksMax"

    def wanted(self, finding: Finding, old: str, directory: Path) -> str:
        if not old.isdigit():
            raise Refused(f"{directory.name} has no limit of its own")
        most = text("/proc/sys/kernel/threads-max").strip()
        if most.isdigit() and 2 * int(old) > int(most) // 2:
            raise Refused("that would be more than half of what the machine can have")
        return str(2 * int(old))


class RaiseFdLimit(Remedy):
    """Raise a process's soft limit on descriptors to twice that, at most its hard limit."""

    name = "raise-fd-limit"
    summary = "double a process's soft limit on open files, within its hard limit"
    blast = "process"

    def prepare(self, finding: Finding) -> State:
        from tegu.heal.snapshot import parse_stat

        pid = int(finding.target["pid"])
        process = parse_stat(text(f"/proc/{pid}/stat"))
        if process is None or process.started != finding.target["started"]:
            raise Refused(f"process {pid} has ended")
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and soft >= hard:
            raise Refused("its soft limit is its hard limit already")
        new = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
        return {"pid": pid, "old": soft, "new": new, "hard": hard}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"prlimit --pid {state['pid']} --nofile={state['new']}:"]

    def apply(self, finding: Finding, state: State) -> None:
        resource.prlimit(state["pid"], resource.RLIMIT_NOFILE, (state["new"], state["hard"]))

    def undo(self, finding: Finding, state: State) -> None:
        resource.prlimit(state["pid"], resource.RLIMIT_NOFILE, (state["old"], state["hard"]))


def _available() -> int:
    for line in text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
