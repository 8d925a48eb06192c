"""`syscalls`: which system calls hold the processor, and which take long."""

from __future__ import annotations

import errno
import struct
from functools import cache
from typing import TYPE_CHECKING

from tegu.linux.seccomp import syscall_name
from tegu.probe.paths import path_of
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, histogram, quantile, who
from tegu.probe.tool import WHO, Names, Need, Tool, slots_of, text, top_rows, unpack_who

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["SystemCalls", "call_name"]

_EVENT = struct.Struct(f"<QQQqQIIiI{WHO}64s")
_KEY = struct.Struct("<Q16sII")
_SUMS = struct.Struct("<QQQQQQ")
_MAX_ERRNO = 4095


class SystemCalls(Tool):
    """Which system calls hold the processor, and which take long?

    Every call is summed by process, control group and call: how long it took, and how much of that
    it had a processor (the rest it slept or waited for its turn). A call that keeps a processor for
    the threshold (1 ms) or more is shown by itself: on a kernel that does not preempt, everything
    else there waited as long. With calls that were switched out meanwhile, the scheduler's count is
    exact to a tick.
    """

    name = "syscalls"
    group = "cpu"
    question = "Which system calls hold the processor, and which take long?"
    facility = "the tracepoints sys_enter and sys_exit"
    overhead = "0.47 us a system call, measured with getppid(2) on 6.18: look for seconds"
    object_name = "syscalls"
    needs = (Need("tracepoint", "sys_enter"), Need("tracepoint", "sys_exit"))
    threshold_ns = 1_000_000
    example = "Example: tegu probe syscalls --pid 1234 --seconds 5 --threshold 500us"

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, took, busy, result, inode, device, number, fd, _ = values[:9]
        task = unpack_who(values[9:13], names)
        file = text(values[13])
        if inode:
            file = path_of(task["pid"], device, inode, fd=fd) or file
        failed = -_MAX_ERRNO <= result < 0
        return {
            "at_ns": at,
            "call": call_name(number),
            "took_ns": took,
            "busy_ns": busy,
            "result": result,
            "error": errno.errorcode.get(-result, str(-result)) if failed else None,
            "file": file or None,
            "task": task,
        }

    def summarize(self, session: Session) -> Record:
        calls = []
        for key, values in session.map("sums").items():
            cgroup, comm, tgid, number = _KEY.unpack(key)
            count, total, longest, busy, busiest, errors = _SUMS.unpack(values[0])
            calls.append(
                {
                    "call": call_name(number),
                    "comm": text(comm),
                    "pid": tgid,
                    "cgroup": session.names.groups.name(cgroup),
                    "count": count,
                    "errors": errors,
                    "total_ns": total,
                    "max_ns": longest,
                    "busy_ns": busy,
                    "busy_max_ns": busiest,
                }
            )
        return {"histogram_us": slots_of(session.map("histogram")), "calls": calls}

    def lines(self, event: Record) -> list[str]:
        what = f"{event['call']} of {event['file']}" if event["file"] else str(event["call"])
        failed = f", {event['error']}" if event["error"] else ""
        return [
            f"{who(event['task'])}: {what} took {duration(event['took_ns'])},"
            f" {duration(event['busy_ns'])} on a processor{failed}"
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        slots = recording.summary["histogram_us"]
        calls = recording.summary["calls"]
        return [
            histogram(
                f"system calls: {sum(slots)} in {recording.seconds:.1f} s,"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            self._table("which held a processor longest in all", calls, "busy_ns", top),
            self._table("which took longest in all", calls, "total_ns", top),
        ]

    def _table(self, title: str, calls: list[Record], key: str, top: int) -> Table:
        return Table(
            title,
            (
                "call",
                "process",
                "pid",
                "cgroup",
                "calls",
                "failed",
                "on a processor",
                "longest",
                "in all",
                "longest",
            ),
            [
                (
                    c["call"],
                    c["comm"],
                    c["pid"],
                    c["cgroup"],
                    c["count"],
                    c["errors"],
                    duration(c["busy_ns"]),
                    duration(c["busy_max_ns"]),
                    duration(c["total_ns"]),
                    duration(c["max_ns"]),
                )
                for c in top_rows(calls, key, top)
            ],
        )


@cache
def call_name(number: int) -> str:
    """Return a system call's name, or `call N` where nobody knows it."""
    return syscall_name(number) or f"call {number}"
