"""`usage`: which control groups and processes have the processors, and which belong to none."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tegu.probe.groups import CgroupNames
from tegu.probe.reading import PROC, Reading, cgroup_of, groups_below, numbers, pids
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings, text, top_rows

__all__ = ["Usage", "is_stray"]

# Fields of proc_pid_stat(5), counted after the name; PF_KTHREAD of include/linux/sched.h.
_FLAGS, _USER, _SYSTEM, _START = 6, 11, 12, 19
_KTHREAD = 0x00200000


class Usage(Reading):
    """Which control groups have the processors, which processes, and which belong to no service?

    What each control group used itself, without those below it, while the probe looked; what each
    process used; and of these the strays: programs in the root group or directly in a slice, which
    no service, scope or container answers for, so that no limit holds them.
    """

    name = "usage"
    group = "cpu"
    question = "Which control groups and processes have the processors, and which are strays?"
    facility = "cpu.stat of control groups (cpuacct.usage of version 1), and /proc/PID/stat"
    example = "Example: tegu probe usage --seconds 30"

    def look(self, settings: Settings) -> dict[str, Any]:
        names = CgroupNames("cpu")
        return {
            "at": time.monotonic(),
            "groups": {
                name: used
                for name, place in groups_below(names)
                if (used := _used_us(place)) is not None
            },
            "processes": _processes(),
        }

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        # Looking takes time of its own on a busy machine.
        whole = max(last["at"] - first["at"], 1e-3)
        grown = {
            name: max(0, used - first["groups"].get(name, 0))
            for name, used in last["groups"].items()
        }
        own = dict(grown)
        for name, used in grown.items():
            if name != "/":
                own[name.rsplit("/", 1)[0] or "/"] -= used
        tick = os.sysconf("SC_CLK_TCK")
        processes = []
        for key, now in last["processes"].items():
            before = first["processes"].get(key)
            ticks = now["ticks"] - (before["ticks"] if before else 0)
            if ticks > 0:
                group = cgroup_of(now["pid"])
                processes.append(
                    {
                        "comm": now["comm"],
                        "pid": now["pid"],
                        "cgroup": group,
                        "percent": round(100 * ticks / tick / whole, 1),
                        "stray": is_stray(group) and not now["kernel"],
                    }
                )
        percent = {name: round(used / 1e4 / whole, 1) for name, used in own.items()}
        if not last["groups"]:
            # Without the groups' own account: the sum over the processes that are still there.
            for process in processes:
                name = process["cgroup"]
                percent[name] = round(percent.get(name, 0.0) + process["percent"], 1)
        return {
            "cpus": os.cpu_count() or 1,
            "groups": [{"cgroup": n, "percent": p} for n, p in percent.items() if p > 0],
            "processes": processes,
        }

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        strays = [p for p in summary["processes"] if p["stray"]]
        return [
            Table(
                f"control groups, in percent of one of {summary['cpus']} processors,"
                f" over {recording.seconds:.1f} s",
                ("percent", "cgroup"),
                [(g["percent"], g["cgroup"]) for g in top_rows(summary["groups"], "percent", top)],
            ),
            *(
                Table(
                    title,
                    ("percent", "process", "pid", "cgroup"),
                    [
                        (p["percent"], p["comm"], p["pid"], p["cgroup"])
                        for p in top_rows(rows, "percent", top)
                    ],
                )
                for title, rows in (
                    ("processes", summary["processes"]),
                    (f"strays: {len(strays)}", strays),
                )
            ),
        ]


def is_stray(cgroup: str) -> bool:
    """Whether a process there belongs to no service, scope or container of its own."""
    return cgroup in ("", "/") or cgroup.endswith(".slice")


def _used_us(directory: Path) -> int | None:
    """Return what a group and those below it have used, in microseconds; None: it is not said."""
    found = numbers(directory / "cpu.stat").get("usage_usec")
    if found is not None:
        return found
    try:
        return int((directory / "cpuacct.usage").read_text()) // 1000
    except (OSError, ValueError):
        return None  # version 1 counts elsewhere


def _processes() -> dict[tuple[int, int], dict[str, Any]]:
    found = {}
    for pid in pids():
        try:
            raw = (PROC / str(pid) / "stat").read_text(errors="replace")
            head, _, tail = raw.rpartition(") ")
            fields = tail.split()
            found[pid, int(fields[_START])] = {
                "pid": pid,
                "comm": text(head.partition("(")[2].encode()),
                "ticks": int(fields[_USER]) + int(fields[_SYSTEM]),
                "kernel": bool(int(fields[_FLAGS]) & _KTHREAD),
            }
        except (OSError, ValueError, IndexError):
            continue
    return found
