"""`offcpu`: what tasks sleep on, and for how long."""

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
    slots_of,
    text,
    top_rows,
    unpack_sums,
    unpack_who,
)

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["STATES", "OffCpu", "state_name"]

_EVENT = struct.Struct(f"<QQIIII{WHO}{STACK_DEPTH}Q")
_KEY = struct.Struct(f"<{WHO}Q{STACK_DEPTH}Q")
_ITERATOR = "offcpu_still"

STATES = {0: "R", 1: "S", 2: "D", 4: "T", 8: "t", 16: "X", 32: "Z", 64: "P"}
"""Letters of ps(1) for the states of include/linux/sched.h."""


def state_name(state: int) -> str:
    """Return the letter of a task's state; `I` for a kernel thread that waits for work."""
    if state & 0x402 == 0x402:
        return "I"
    return STATES.get(state & 0x7F & -(state & 0x7F), "?")


class OffCpu(Tool):
    """What do tasks sleep on, and for how long?

    Every sleep goes into a histogram; those of 1 ms and more are summed by process, control group
    and kernel stack; those of the threshold (1 s) and more are shown one by one. Tasks that still
    sleep at the end are listed too, with the stack that holds them.
    """

    name = "offcpu"
    group = "cpu"
    question = "What do tasks sleep on, and for how long?"
    facility = "the tracepoint sched_switch, task storage, and the iterator over tasks"
    overhead = "two lookups for each switch between tasks; not yet measured beside its peers"
    object_name = "offcpu"
    needs = (Need("tracepoint", "sched_switch"), Need("iterator", "task"))
    threshold_ns = 1_000_000_000
    floor_ns = 1_000_000
    stacks = True
    example = "Example: tegu probe offcpu --pid 1234 --seconds 5 --flame asleep.svg"

    _link = 0

    def attach(self, session: Session) -> None:
        for program in session.programs:
            link = session.object.attach(program)
            if program == _ITERATOR:
                self._link = link

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, slept, state, iowait, depth, ended = values[:6]
        return {
            "at_ns": at,
            "slept_ns": slept,
            "state": state_name(state),
            "iowait": bool(iowait),
            "ended": bool(ended),
            "task": unpack_who(values[6:10], names),
            "stack": names.symbols.kernel(values[10 : 10 + depth]),
        }

    def summarize(self, session: Session) -> Record:
        raw = session.object.iterate(self._link)
        still = []
        for start in range(0, len(raw) - _EVENT.size + 1, _EVENT.size):
            found = self.decode(raw[start : start + _EVENT.size], session.names)
            del found["at_ns"]
            still.append(found)
        sleeps = []
        for key, values in session.map("stacks").items():
            unpacked = _KEY.unpack(key)
            cgroup, _, tgid, comm, state = unpacked[:5]
            sums = unpack_sums(values)
            sleeps.append(
                {
                    "comm": text(comm),
                    "pid": tgid,
                    "cgroup": session.names.groups.name(cgroup),
                    "state": state_name(state),
                    "count": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                    "stack": session.names.symbols.kernel(a for a in unpacked[5:] if a),
                }
            )
        return {
            "histogram_us": slots_of(session.map("histogram")),
            "sleeps": sleeps,
            "still": still,
        }

    def lines(self, event: Record) -> list[str]:
        kind = f"{event['state']}{', waiting for I/O' if event['iowait'] else ''}"
        return [
            f"{who(event['task'])} slept {duration(event['slept_ns'])} ({kind})",
            *indented(event["stack"]),
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        slots = summary["histogram_us"]
        rows = [
            (
                s["comm"],
                s["pid"],
                s["cgroup"],
                s["state"],
                s["count"],
                duration(s["total_ns"]),
                duration(s["max_ns"]),
                where(s["stack"]),
            )
            for s in top_rows(summary["sleeps"], "total_ns", top)
        ]
        found = [
            histogram(
                f"sleeps: {sum(slots)} in {recording.seconds:.1f} s,"
                f" half below {duration(quantile(slots, 0.5))},"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            Table(
                f"who slept {duration(self.floor_ns)} or more, on what",
                ("process", "pid", "cgroup", "state", "sleeps", "total", "longest", "in"),
                rows,
            ),
        ]
        still = sorted(
            summary["still"], key=lambda e: (e["slept_ns"] == 0, e["slept_ns"]), reverse=True
        )
        if still:
            found.append(
                Table(
                    f"still asleep at the end: {len(still)}",
                    ("task", "tid", "cgroup", "state", "for", "in"),
                    [
                        (
                            e["task"]["comm"],
                            e["task"]["tid"],
                            e["task"]["cgroup"],
                            e["state"],
                            duration(e["slept_ns"])
                            if e["slept_ns"]
                            else f"over {recording.seconds:.0f} s",
                            where(e["stack"]),
                        )
                        for e in still[:top]
                    ],
                )
            )
        return found

    def stacks_of(self, recording: Recording) -> list[tuple[list[str], float]]:
        return [
            (
                [str(s["comm"]), *(f"{frame}_[k]" for frame in reversed(s["stack"]))],
                float(s["total_ns"]) / 1e6,
            )
            for s in recording.summary["sleeps"]
        ]


_SCHEDULER = ("schedule", "__schedule", "io_schedule", "preempt_schedule")


def where(stack: list[str]) -> str:
    """Return the first functions of a stack below the scheduler's own, in one line."""
    below = [f for f in stack if not f.startswith(_SCHEDULER)]
    return " < ".join(below[:4])
