"""`exits`: what starts, what fails and how, and whom the kernel kills for lack of memory."""

from __future__ import annotations

import signal
import struct
from typing import TYPE_CHECKING

from tegu.linux.libbpf import KernelTypes
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, who
from tegu.probe.tool import (
    WHO,
    Names,
    Need,
    Settings,
    Tool,
    text,
    top_rows,
    unpack_sums,
    unpack_who,
)

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Exits", "how_it_ended"]

_EVENT = struct.Struct(f"<QQQIiII{WHO}{WHO}128s")
_KEY = struct.Struct("<Q16siI")
_EXEC, _EXIT, _OOM = range(3)
_ALL = 3


class Exits(Tool):
    """What starts, what fails and how, and whom does the kernel kill for lack of memory?

    Counts programs that start and processes that end by name and control group: many that live
    for milliseconds are a load that no list of processes shows. Failures (a signal, or a code other
    than 0) are shown one by one with the parent; so is everything with --pid or --cgroup. Of a
    kill for lack of memory: who was killed, at whose limit, and who asked for the memory.
    """

    name = "exits"
    group = "process"
    question = "What starts, what fails and how, whom does the kernel kill for lack of memory?"
    facility = "the tracepoints sched_process_exec, sched_process_exit and mark_victim"
    overhead = "two short programs for each process that starts and ends"
    object_name = "exits"
    controller = "memory"
    needs = (
        Need("tracepoint", "sched_process_exec"),
        Need("tracepoint", "sched_process_exit"),
        Need("tracepoint", "mark_victim"),
    )
    example = "Example: tegu probe exits --cgroup /system.slice/job.service --seconds 60"

    def left_out(self, types: KernelTypes) -> list[str]:
        # The tracepoint records the name since it is given the task itself (Linux 6.9).
        by_task = "__data_loc_comm" in types.members("trace_event_raw_mark_victim")
        return ["exits_oom_number" if by_task else "exits_oom"]

    def extra(self, settings: Settings) -> int:
        return _ALL if settings.cgroup or settings.pid else 0

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, lived, limit, kind, code, parent, _ = values[:7]
        found: Record = {
            "at_ns": at,
            "kind": ("exec", "exit", "oom")[kind],
            "task": unpack_who(values[7:11], names),
        }
        other = unpack_who(values[11:15], names)
        if kind == _OOM:
            found["asked_by"] = other
            found["limit"] = names.groups.name(limit) if limit else None
            return found
        found["parent"] = {**other, "pid": parent}
        if kind == _EXEC:
            found["file"] = text(values[15])
        else:
            found["lived_ns"] = lived
            found["ended"] = how_it_ended(code)
        return found

    def summarize(self, session: Session) -> Record:
        started, ended = [], []
        for key, values in session.map("counts").items():
            cgroup, comm, code, kind = _KEY.unpack(key)
            sums = unpack_sums(values)
            row: Record = {
                "comm": text(comm),
                "cgroup": session.names.groups.name(cgroup),
                "count": sums.count,
            }
            if kind == _EXEC:
                started.append(row)
            else:
                ended.append({**row, "ended": how_it_ended(code), "lived_ns": sums.total_ns})
        return {"started": started, "ended": ended}

    def lines(self, event: Record) -> list[str]:
        task = who(event["task"])
        if event["kind"] == "oom":
            whose = f"at the limit of {event['limit']}" if event["limit"] else "of the machine"
            return [
                f"OUT OF MEMORY {whose}: killed {task};"
                f" {who(event['asked_by'])} had asked for memory"
            ]
        parent = f"a child of {event['parent']['comm']}[{event['parent']['pid']}]"
        if event["kind"] == "exec":
            return [f"{task}, {parent}, runs {event['file']}"]
        return [f"{task}, {parent}: {event['ended']} after {duration(event['lived_ns'])}"]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        started, ended = recording.summary["started"], recording.summary["ended"]
        return [
            Table(
                f"{sum(int(s['count']) for s in started)} programs started"
                f" in {recording.seconds:.1f} s",
                ("program", "cgroup", "times"),
                [(s["comm"], s["cgroup"], s["count"]) for s in top_rows(started, "count", top)],
            ),
            Table(
                f"{sum(int(s['count']) for s in ended)} processes ended",
                ("program", "cgroup", "how", "times", "lived on average"),
                [
                    (
                        s["comm"],
                        s["cgroup"],
                        s["ended"],
                        s["count"],
                        duration(s["lived_ns"] / max(s["count"], 1)),
                    )
                    for s in top_rows(ended, "count", top)
                ],
            ),
        ]


def how_it_ended(code: int) -> str:
    """Say what wait(2) says: `exit 1`, `killed by SIGKILL`, `SIGSEGV, core dumped`."""
    number = code & 0x7F
    if not number:
        return f"exit {code >> 8 & 0xFF}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"killed by {name}{', core dumped' if code & 0x80 else ''}"
