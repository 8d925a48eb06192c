"""`load`: when the load rises, whose it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tegu.probe.reading import PROC, Reading, cgroup_of, pids
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, indented
from tegu.probe.tool import Settings, text, top_rows

__all__ = ["Load", "counts"]

_EVERY = 10
"""Looks without a word after one that told: the same load is not told ten times a second."""
_RUNNING_PER_CPU = 2
_BLOCKED = 2
_MOST_STACKS = 5


class Load(Reading):
    """When the load rises: whose is it, and where do those tasks stand?

    Ten times a second, how many tasks run or want to (state R) and how many wait in
    uninterruptible sleep (state D). From two a processor, or from two that wait, who they are is
    looked up: by control group and program, with the kernel's stacks of those that wait. Tasks that
    wait count in the load average like those that run; this tells them apart.
    """

    name = "load"
    group = "cpu"
    question = "When the load rises: whose is it, and where do those tasks stand?"
    facility = "/proc/stat (procs_running, procs_blocked), and /proc/PID/task when they are many"
    overhead = "one file ten times a second; under load a walk over all tasks, once a second"
    example = "Example: tegu probe load --seconds 60"

    def __init__(self) -> None:
        self._quiet = 0
        self._looks = 0
        self._most = {"running": 0, "blocked": 0}
        self._sums: Counter[tuple[str, str, str]] = Counter()

    def look(self, settings: Settings) -> dict[str, Any]:
        running, blocked = counts(Path("/proc/stat").read_text())
        return {
            "average": os.getloadavg()[0],
            "running": running,
            "blocked": blocked,
            "most": dict(self._most),
            "looks": self._looks,
            "sums": dict(self._sums),
        }

    def between(self) -> Iterator[Record]:
        running, blocked = counts(Path("/proc/stat").read_text())
        self._looks += 1
        self._most["running"] = max(self._most["running"], running)
        self._most["blocked"] = max(self._most["blocked"], blocked)
        self._quiet -= 1
        many = running > _RUNNING_PER_CPU * (os.cpu_count() or 1) or blocked >= _BLOCKED
        if not many or self._quiet > 0:
            return
        self._quiet = _EVERY
        tasks = _tasks()
        whose: Counter[tuple[str, str, str]] = Counter()
        for task in tasks:
            whose[task["state"], task["cgroup"], task["comm"]] += 1
        self._sums.update(whose)
        yield {
            "running": running,
            "blocked": blocked,
            "whose": [
                {"state": s, "cgroup": g, "comm": c, "count": n}
                for (s, g, c), n in whose.most_common(10)
            ],
            "stacks": [
                {"comm": t["comm"], "tid": t["tid"], "stack": _stack(t["tid"])}
                for t in tasks
                if t["state"] == "D"
            ][:_MOST_STACKS],
        }

    def lines(self, event: Record) -> list[str]:
        said = [f"{event['running']} run or want to, {event['blocked']} wait uninterruptibly:"]
        said += [
            f"   {w['count']} {w['comm']} in {w['cgroup']} ({w['state']})"
            for w in event["whose"][:_MOST_STACKS]
        ]
        for task in event["stacks"]:
            said += [f"   {task['comm']}[{task['tid']}] stands in", *indented(task["stack"])]
        return said

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        return {
            "average": round(last["average"], 2),
            "cpus": os.cpu_count() or 1,
            "most": last["most"],
            "whose": [
                {"state": s, "cgroup": g, "comm": c, "count": n}
                for (s, g, c), n in last["sums"].items()
            ],
        }

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        most = summary["most"]
        return [
            Table(
                f"load average {summary['average']} on {summary['cpus']} processors; at most"
                f" {most['running']} ran or wanted to, {most['blocked']} waited uninterruptibly",
                ("seen", "state", "process", "cgroup"),
                [
                    (w["count"], w["state"], w["comm"], w["cgroup"])
                    for w in top_rows(summary["whose"], "count", top)
                ],
            )
        ]


def counts(stat: str) -> tuple[int, int]:
    """Return procs_running and procs_blocked of /proc/stat."""
    found = {"procs_running": 0, "procs_blocked": 0}
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name in found and value.strip().isdigit():
            found[name] = int(value)
    return found["procs_running"], found["procs_blocked"]


def _tasks() -> list[Record]:
    """Return the tasks in state R or D, but this one."""
    tasks = []
    own = os.getpid()
    for pid in pids():
        try:
            threads = os.listdir(PROC / str(pid) / "task")  # noqa: PTH208 - thousands
        except OSError:
            continue
        for tid in threads:
            try:
                raw = (PROC / str(pid) / "task" / tid / "stat").read_text(errors="replace")
            except OSError:
                continue
            head, _, tail = raw.rpartition(") ")
            if tail[:1] in ("R", "D") and pid != own:
                tasks.append(
                    {
                        "state": tail[:1],
                        "tid": int(tid),
                        "comm": text(head.partition("(")[2].encode()),
                        "cgroup": cgroup_of(pid),
                    }
                )
    return tasks


def _stack(tid: int) -> list[str]:
    """Return a task's kernel stack (proc_pid_stack(5)); empty without the privilege."""
    try:
        text_of = (PROC / str(tid) / "stack").read_text()
    except OSError:
        return []
    return [line.partition("] ")[2].partition("+")[0] for line in text_of.splitlines()]
