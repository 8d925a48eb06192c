"""`runq`: who waits for a processor, and behind whom."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, histogram, indented, quantile, who
from tegu.probe.tool import (
    STACK_DEPTH,
    WHO,
    Names,
    Need,
    Tool,
    text,
    top_rows,
    unpack_sums,
    unpack_who,
)

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["RunQueue"]

_EVENT = struct.Struct(f"<QQQIIII{WHO}{WHO}{STACK_DEPTH}Q{STACK_DEPTH}Q")
_RUN = 56  # bytes of struct run
_CPU = struct.Struct(f"<QQQ{8 * _RUN}x32Q")
_PAIR = struct.Struct("<QQ")
_TASK = struct.Struct("<I16sIQ")


class RunQueue(Tool):
    """Who waits for a processor, and behind whom?

    Every wait in a run queue goes into a histogram. Waits of 100 us and more are summed by the
    control group that waited and the one that held the processor meanwhile; those of the threshold
    (1 ms) and more are shown one by one. The culprit is the task with the longest run within the
    wait; its stack is there when it was the last one, too.
    """

    name = "runq"
    group = "cpu"
    question = "Who waits for a processor, and behind whom?"
    facility = (
        "the tracepoint sched_switch and the kernel's own note of when a task was queued"
        " (sched_info.last_queued)"
    )
    overhead = (
        "100 to 200 ns for each switch between tasks on the development machine; a program that"
        " does nothing takes 50 to 100 (bench/probe)"
    )
    object_name = "runq"
    needs = (
        Need("tracepoint", "sched_switch"),
        Need("member", "sched_info.last_queued"),
        Need("member", "cfs_rq.rq"),
    )
    threshold_ns = 1_000_000
    floor_ns = 100_000
    example = "Example: tegu probe runq --cgroup /system.slice/web.service --threshold 2ms"

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, wait, ran, cpu, depth, user_depth, preempted = values[:7]
        victim = unpack_who(values[7:11], names)
        culprit = unpack_who(values[11:15], names)
        stack = values[15 : 15 + STACK_DEPTH][:depth]
        user = values[15 + STACK_DEPTH :][:user_depth]
        return {
            "at_ns": at,
            "wait_ns": wait,
            "cpu": cpu,
            "victim": victim,
            "behind": {
                **culprit,
                "ran_ns": ran,
                "preempted": bool(preempted),
                "stack": names.symbols.kernel(stack),
                "user_stack": names.symbols.user(culprit["pid"], user),
            },
        }

    def summarize(self, session: Session) -> Record:
        cpus = [_CPU.unpack(v) for v in session.map("cpus").get(struct.pack("<I", 0))]
        groups = session.names.groups
        pairs = []
        for key, values in session.map("pairs").items():
            victim, culprit = _PAIR.unpack(key)
            sums = unpack_sums(values)
            pairs.append(
                {
                    "victim": groups.name(victim),
                    "culprit": groups.name(culprit),
                    "waits": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                }
            )
        tasks = []
        for key, values in session.map("tasks").items():
            tgid, comm, _, cgroup = _TASK.unpack(key)
            sums = unpack_sums(values)
            tasks.append(
                {
                    "pid": tgid,
                    "comm": text(comm),
                    "cgroup": groups.name(cgroup),
                    "waits": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                }
            )
        return {
            "switches": sum(c[1] for c in cpus),
            "histogram_us": [sum(c[3 + i] for c in cpus) for i in range(32)],
            "pairs": pairs,
            "tasks": tasks,
        }

    def lines(self, event: Record) -> list[str]:
        behind = event["behind"]
        how = "was forced off" if behind["preempted"] else "left by itself"
        ran = f" (ran {duration(behind['ran_ns'])} of it, {how})" if behind["ran_ns"] else ""
        return [
            f"{who(event['victim'])} waited {duration(event['wait_ns'])} for CPU {event['cpu']}"
            f" behind {who(behind)}{ran}",
            *indented(behind["stack"]),
            *indented(behind["user_stack"]),
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        slots = summary["histogram_us"]
        pairs = top_rows(summary["pairs"], "total_ns", top)
        tasks = top_rows(summary["tasks"], "total_ns", top)
        return [
            histogram(
                f"waits for a processor: {sum(slots)} in {recording.seconds:.1f} s,"
                f" half below {duration(quantile(slots, 0.5))},"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            Table(
                "who waited 100 us or more, behind whom, by cgroup",
                ("victim", "behind", "waits", "total", "longest"),
                [
                    (
                        p["victim"],
                        p["culprit"],
                        p["waits"],
                        duration(p["total_ns"]),
                        duration(p["max_ns"]),
                    )
                    for p in pairs
                ],
            ),
            Table(
                "processes that waited",
                ("process", "pid", "cgroup", "waits", "total", "longest"),
                [
                    (
                        t["comm"],
                        t["pid"],
                        t["cgroup"],
                        t["waits"],
                        duration(t["total_ns"]),
                        duration(t["max_ns"]),
                    )
                    for t in tasks
                ],
            ),
        ]
