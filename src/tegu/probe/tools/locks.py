"""`locks`: which locks of the kernel are waited for, and where."""

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

__all__ = ["Locks", "kind_of_lock"]

_EVENT = struct.Struct(f"<QQQII{WHO}{STACK_DEPTH}Q")
_KEY = struct.Struct(f"<QQ16s{STACK_DEPTH}Q")
_SPIN, _READ, _WRITE, _RT, _PERCPU, _MUTEX = (1 << bit for bit in range(6))


class Locks(Tool):
    """Which locks of the kernel are waited for, where, and for how long?

    Waits for spinning locks, mutexes, semaphores and the kernel's other locks, by the place that
    waits, process and control group; those of the threshold (1 ms) or more are shown with their
    stack. Locks that are free when they are taken cost nothing and are not seen. Locks of programs
    are waits in futex(2): `offcpu` and `syscalls` show those.
    """

    name = "locks"
    group = "process"
    question = "Which locks of the kernel are waited for, where, and for how long?"
    facility = "the tracepoints contention_begin and contention_end (Linux 5.19)"
    overhead = "two short programs for each wait; none for locks that are free"
    object_name = "locks"
    needs = (Need("tracepoint", "contention_begin"), Need("tracepoint", "contention_end"))
    threshold_ns = 1_000_000
    floor_ns = 1_000
    stacks = True
    example = "Example: tegu probe locks --seconds 10 --flame locks.svg"

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, waited, lock, flags, depth = values[:5]
        return {
            "at_ns": at,
            "waited_ns": waited,
            "lock": f"{lock:#x}",
            "kind": kind_of_lock(flags),
            "task": unpack_who(values[5:9], names),
            "stack": names.symbols.kernel(values[9 : 9 + depth]),
        }

    def summarize(self, session: Session) -> Record:
        waits = []
        for key, values in session.map("stacks").items():
            flags, cgroup, comm, *stack = _KEY.unpack(key)
            sums = unpack_sums(values)
            waits.append(
                {
                    "kind": kind_of_lock(flags),
                    "comm": text(comm),
                    "cgroup": session.names.groups.name(cgroup),
                    "count": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                    "stack": session.names.symbols.kernel(a for a in stack if a),
                }
            )
        return {"histogram_us": slots_of(session.map("histogram")), "waits": waits}

    def lines(self, event: Record) -> list[str]:
        return [
            f"{who(event['task'])} waited {duration(event['waited_ns'])} for a {event['kind']}",
            *indented(event["stack"]),
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        slots = recording.summary["histogram_us"]
        return [
            histogram(
                f"waits for locks: {sum(slots)} in {recording.seconds:.1f} s,"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            Table(
                f"who waited {duration(self.floor_ns)} or more, where",
                ("process", "cgroup", "lock", "waits", "total", "longest", "in"),
                [
                    (
                        w["comm"],
                        w["cgroup"],
                        w["kind"],
                        w["count"],
                        duration(w["total_ns"]),
                        duration(w["max_ns"]),
                        " < ".join(_callers(w["stack"])[:4]),
                    )
                    for w in top_rows(recording.summary["waits"], "total_ns", top)
                ],
            ),
        ]

    def stacks_of(self, recording: Recording) -> list[tuple[list[str], float]]:
        return [
            (
                [str(w["comm"]), *(f"{frame}_[k]" for frame in reversed(w["stack"]))],
                float(w["total_ns"]) / 1e6,
            )
            for w in recording.summary["waits"]
        ]


_SLOW_PATHS: tuple[str, ...] = ("__traceiter_", "trace_", "bpf_", "__pv_queued", "native_queued")
_SLOW_PATHS += ("queued_", "_raw_", "__mutex", "mutex_", "rwsem_", "down_", "__down", "percpu_")
_SLOW_PATHS += ("__percpu", "rt_", "__rt")


def _callers(stack: list[str]) -> list[str]:
    """Return a stack without the lock's own functions at its top."""
    for start, frame in enumerate(stack):
        if not frame.startswith(_SLOW_PATHS):
            return stack[start:]
    return stack


def kind_of_lock(flags: int) -> str:
    """Name a lock by the flags of include/trace/events/lock.h."""
    if flags & _PERCPU:
        name = "per-CPU semaphore"
    elif flags & _MUTEX:
        name = "mutex"
    elif flags & _SPIN:
        name = "rwlock" if flags & (_READ | _WRITE) else "spinlock"
    elif flags & _RT:
        name = "real-time mutex"
    else:
        name = "semaphore"
    way = " (read)" if flags & _READ else " (write)" if flags & _WRITE else ""
    return name + way
