"""`signals`: who sends which signal to whom."""

from __future__ import annotations

import signal
import struct
from typing import TYPE_CHECKING

from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, who
from tegu.probe.tool import WHO, Names, Need, Settings, Tool, text, top_rows, unpack_who

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["SignalsSent", "signal_name"]

_EVENT = struct.Struct(f"<QIiII{WHO}{WHO}")
_KEY = struct.Struct("<QQ16s16sII")
# enum of include/trace/events/signal.h
_RESULTS = ("delivered", "ignored", "already pending", "overflow", "lost")
_TELLING = (
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGSYS,
    signal.SIGXCPU,
    signal.SIGSTOP,
)


class SignalsSent(Tool):
    """Who sends which signal to whom?

    Every signal is counted by sender, receiver, control groups and number. Those that end or stop
    processes (KILL, TERM, SEGV, ABRT, STOP and their like) are shown one by one; with --pid or
    --cgroup, which mean sender or receiver, all are. What the kernel itself sends has no sender.
    """

    name = "signals"
    group = "process"
    question = "Who sends which signal to whom?"
    facility = "the tracepoint signal_generate"
    overhead = "a short program for each signal"
    object_name = "signals"
    needs = (Need("tracepoint", "signal_generate"),)
    example = "Example: tegu probe signals --cgroup /system.slice/job.service --seconds 60"

    def extra(self, settings: Settings) -> int:
        if settings.cgroup or settings.pid:
            return 0
        return sum(1 << number for number in _TELLING)

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, number, code, result, kernel = values[:5]
        return {
            "at_ns": at,
            "signal": signal_name(number),
            "code": code,
            "result": _RESULTS[result] if result < len(_RESULTS) else str(result),
            "from": None if kernel else unpack_who(values[5:9], names),
            "task": unpack_who(values[9:13], names),
        }

    def summarize(self, session: Session) -> Record:
        groups = session.names.groups
        sent = []
        for key, values in session.map("counts").items():
            cgroup, to_cgroup, comm, to_comm, number, kernel = _KEY.unpack(key)
            sent.append(
                {
                    "signal": signal_name(number),
                    "from": None if kernel else text(comm),
                    "from_cgroup": None if kernel else groups.name(cgroup),
                    "to": text(to_comm),
                    "to_cgroup": groups.name(to_cgroup),
                    "count": struct.unpack("<Q", values[0])[0],
                }
            )
        return {"sent": sent}

    def lines(self, event: Record) -> list[str]:
        sender = who(event["from"]) if event["from"] else "the kernel"
        result = "" if event["result"] == _RESULTS[0] else f" ({event['result']})"
        return [f"{sender} sends {event['signal']} to {who(event['task'])}{result}"]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        sent = recording.summary["sent"]
        return [
            Table(
                f"{sum(int(s['count']) for s in sent)} signals in {recording.seconds:.1f} s",
                ("signal", "from", "its cgroup", "to", "its cgroup", "times"),
                [
                    (
                        s["signal"],
                        s["from"] or "(kernel)",
                        s["from_cgroup"] or "",
                        s["to"],
                        s["to_cgroup"],
                        s["count"],
                    )
                    for s in top_rows(sent, "count", top)
                ],
            )
        ]


def signal_name(number: int) -> str:
    """Return SIGKILL for 9; real-time signals are `SIGRTMIN+N`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        more = number - signal.SIGRTMIN
        return f"SIGRTMIN+{more}" if more >= 0 else f"signal {number}"
