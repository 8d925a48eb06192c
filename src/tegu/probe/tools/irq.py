"""`irq`: what interrupts cost, and whom they keep waiting."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, who
from tegu.probe.tool import WHO, Names, Need, Tool, text, top_rows, unpack_sums, unpack_who

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Interrupts"]

_EVENT = struct.Struct(f"<QQIIII{WHO}32s")
_KEY = struct.Struct("<IIII32s")
_VICTIM = struct.Struct("<Q16s")
_KINDS = ("hard", "soft")
# enum of include/linux/interrupt.h
_SOFT: tuple[str, ...] = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET")
_SOFT += ("SCHED", "HRTIMER", "RCU")


class Interrupts(Tool):
    """What do interrupts cost, and whom do they keep waiting?

    Handlers of devices (hard) and what the kernel does after them (soft: network, block, timers,
    RCU), by name and processor, without what one keeps the other waiting; and whose time it was:
    the tasks that were running. One that takes the threshold (500 us) or more is shown by itself.
    Soft interrupts in ksoftirqd are its own time.
    """

    name = "irq"
    group = "cpu"
    question = "What do interrupts cost, and whom do they keep waiting?"
    facility = "the tracepoints irq_handler_entry, irq_handler_exit, softirq_entry, softirq_exit"
    overhead = "two short programs for each interrupt"
    object_name = "irq"
    needs = (Need("tracepoint", "irq_handler_entry"), Need("tracepoint", "softirq_entry"))
    threshold_ns = 500_000
    selects = False
    example = "Example: tegu probe irq --seconds 5 --threshold 200us"

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, took, kind, number, cpu, _ = values[:6]
        return {
            "at_ns": at,
            "took_ns": took,
            "kind": _KINDS[kind],
            "name": _name(kind, number, values[10]),
            "cpu": cpu,
            "task": unpack_who(values[6:10], names),
        }

    def summarize(self, session: Session) -> Record:
        handlers, victims = [], []
        for key, values in session.map("sums").items():
            kind, number, cpu, _, name = _KEY.unpack(key)
            sums = unpack_sums(values)
            handlers.append(
                {
                    "kind": _KINDS[kind],
                    "name": _name(kind, number, name),
                    "cpu": cpu,
                    "count": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                }
            )
        for key, values in session.map("victims").items():
            cgroup, comm = _VICTIM.unpack(key)
            sums = unpack_sums(values)
            victims.append(
                {
                    "comm": text(comm),
                    "cgroup": session.names.groups.name(cgroup),
                    "count": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                }
            )
        return {"handlers": handlers, "victims": victims}

    def lines(self, event: Record) -> list[str]:
        return [
            f"{event['kind']} interrupt {event['name']} on CPU {int(event['cpu'])} took"
            f" {duration(event['took_ns'])} from {who(event['task'])}"
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        handlers, victims = recording.summary["handlers"], recording.summary["victims"]
        spent = sum(int(h["total_ns"]) for h in handlers)
        return [
            Table(
                f"interrupts took {duration(spent)} in {recording.seconds:.1f} s",
                ("interrupt", "kind", "CPU", "times", "total", "longest"),
                [
                    (
                        h["name"],
                        h["kind"],
                        h["cpu"],
                        h["count"],
                        duration(h["total_ns"]),
                        duration(h["max_ns"]),
                    )
                    for h in top_rows(handlers, "total_ns", top)
                ],
            ),
            Table(
                "whose time it was",
                ("process", "cgroup", "times", "total", "longest"),
                [
                    (
                        v["comm"],
                        v["cgroup"],
                        v["count"],
                        duration(v["total_ns"]),
                        duration(v["max_ns"]),
                    )
                    for v in top_rows(victims, "total_ns", top)
                ],
            ),
        ]


def _name(kind: int, number: int, name: bytes) -> str:
    if _KINDS[kind] == "hard":
        return f"{number} {text(name)}".strip()
    return _SOFT[number] if number < len(_SOFT) else f"soft {number}"
