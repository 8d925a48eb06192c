"""`census`: all tasks there are, by control group and by what is the matter with them."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration
from tegu.probe.tool import WHO, Need, Tool, text, top_rows
from tegu.probe.tools.offcpu import state_name

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Census"]

_ROW = struct.Struct(f"<{WHO}IIIIQQQ")
_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_EXIT_ZOMBIE = 32


class Census(Tool):
    """Which tasks are there: by control group, by state, by process?

    One pass over the kernel's own task list. Shows for each control group its processes, threads
    and those that run, wait in state D or are dead but not waited for; the processes with the most
    threads; the parents of the dead.
    """

    name = "census"
    group = "process"
    question = "Which tasks are there, in which state and control group?"
    facility = "the iterator over tasks (iter/task)"
    overhead = "none but the one pass, of microseconds for each thousand tasks"
    object_name = "census"
    needs = (Need("iterator", "task"),)
    instant = True
    example = "Example: tegu probe census --cgroup /system.slice --json"

    _link = 0

    def attach(self, session: Session) -> None:
        self._link = session.object.attach("census_task")

    def summarize(self, session: Session) -> Record:
        raw = session.object.iterate(self._link)
        names: dict[int, str] = {}
        threads: Counter[int] = Counter()
        by_group: dict[str, Counter[str]] = defaultdict(Counter)
        leaders: dict[int, Record] = {}
        zombies: Counter[int] = Counter()
        cpu: Counter[int] = Counter()
        for row in _ROW.iter_unpack(raw[: len(raw) - len(raw) % _ROW.size]):
            cgroup, tid, tgid, comm, parent, state, flags, exited, user, system, start = row
            if cgroup not in names:
                names[cgroup] = session.names.groups.name(cgroup)
            group = by_group[names[cgroup]]
            letter = "Z" if exited & _EXIT_ZOMBIE else state_name(state)
            group["threads"] += 1
            group[letter] += 1
            group["cpu_ns"] += user + system
            group["kernel"] += bool(flags & _PF_KTHREAD)
            threads[tgid] += 1
            cpu[tgid] += user + system
            if tid == tgid:
                group["processes"] += 1
                if letter == "Z":
                    zombies[parent] += 1
                leaders[tgid] = {
                    "pid": tgid,
                    "comm": text(comm),
                    "cgroup": names[cgroup],
                    "parent": parent,
                    "state": letter,
                    "started_ns": start,
                }
        keys = ("processes", "threads", "kernel", "R", "S", "D", "Z", "T", "I", "cpu_ns")
        return {
            "groups": [
                {"cgroup": name, **{key: count[key] for key in keys}}
                for name, count in sorted(by_group.items())
            ],
            "processes": [
                {
                    **leader,
                    "threads": threads[pid],
                    "cpu_ns": cpu[pid],
                    "dead_children": zombies[pid],
                }
                for pid, leader in sorted(leaders.items())
            ],
        }

    def lines(self, event: Record) -> list[str]:
        return []  # there are none

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        groups, processes = summary["groups"], summary["processes"]
        states = {s: sum(int(g[s]) for g in groups) for s in ("R", "D", "Z")}
        found = [
            Table(
                f"{sum(int(g['threads']) for g in groups)} tasks of {len(processes)} processes"
                f" in {len(groups)} control groups: {states['R']} run or want to,"
                f" {states['D']} in state D, {states['Z']} dead and not waited for",
                ("cgroup", "processes", "threads", "R", "D", "Z", "CPU so far"),
                [
                    (
                        g["cgroup"],
                        g["processes"],
                        g["threads"],
                        g["R"],
                        g["D"],
                        g["Z"],
                        duration(g["cpu_ns"]),
                    )
                    for g in top_rows(groups, "threads", top)
                ],
            ),
            Table(
                "processes with the most threads",
                ("process", "pid", "cgroup", "threads", "CPU so far"),
                [
                    (p["comm"], p["pid"], p["cgroup"], p["threads"], duration(p["cpu_ns"]))
                    for p in top_rows(processes, "threads", top)
                ],
            ),
        ]
        careless = [p for p in top_rows(processes, "dead_children", top) if p["dead_children"]]
        if careless:
            found.append(
                Table(
                    "who does not wait for its dead children",
                    ("process", "pid", "cgroup", "dead children"),
                    [(p["comm"], p["pid"], p["cgroup"], p["dead_children"]) for p in careless],
                )
            )
        return found
