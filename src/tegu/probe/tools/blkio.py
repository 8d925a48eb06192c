"""`blkio`: how long block devices take, for whom, and where the time goes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, histogram, quantile, who
from tegu.probe.tool import WHO, Names, Need, Tool, slots_of, text, top_rows, unpack_who

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["BlockLatency"]

_EVENT = struct.Struct(f"<QQQQIIiI32s{WHO}")
_KEY = struct.Struct("<Q32sII16s")
_SUMS = struct.Struct("<QQQQQQ")
# enum req_op, include/linux/blk_types.h
_OPERATIONS = {0: "read", 1: "write", 2: "flush", 3: "discard", 5: "secure-erase", 9: "zeroes"}


class BlockLatency(Tool):
    """How long do block devices take, for whom, and does the time go in the queue or in the device?

    All requests are summed by device, control group, process and operation; those of the threshold
    (10 ms) and more, and all that fail, are shown one by one. Time in the queue is the scheduler's
    and its limits'; time in the device is the hardware's, or the hypervisor's. With --cgroup, only
    what is charged to that very group.
    """

    name = "blkio"
    group = "io"
    question = "How long do block devices take, for whom: in the queue, or in the device?"
    facility = "the tracepoints block_rq_insert, block_rq_issue and block_rq_complete"
    overhead = "three short programs for each request; none without I/O"
    object_name = "blkio"
    controller = "blkio"
    needs = (
        Need("tracepoint", "block_rq_insert"),
        Need("tracepoint", "block_rq_issue"),
        Need("tracepoint", "block_rq_complete"),
        Need("member", "request_queue.disk"),
    )
    threshold_ns = 10_000_000
    example = "Example: tegu probe blkio --seconds 30 --threshold 50ms"

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, queue, device, sector, size, op, error, _, disk = values[:9]
        return {
            "at_ns": at,
            "queue_ns": queue,
            "device_ns": device,
            "sector": sector,
            "bytes": size,
            "operation": _OPERATIONS.get(op, f"operation {op}"),
            "failed": bool(error),
            "disk": text(disk),
            "task": unpack_who(values[9:13], names),
        }

    def summarize(self, session: Session) -> Record:
        sums = []
        for key, values in session.map("sums").items():
            cgroup, disk, op, tgid, comm = _KEY.unpack(key)
            count, size, queue, device, most, errors = _SUMS.unpack(values[0])
            sums.append(
                {
                    "disk": text(disk),
                    "cgroup": session.names.groups.name(cgroup),
                    "comm": text(comm),
                    "pid": tgid,
                    "operation": _OPERATIONS.get(op, f"operation {op}"),
                    "count": count,
                    "bytes": size,
                    "queue_ns": queue,
                    "device_ns": device,
                    "total_ns": queue + device,
                    "max_ns": most,
                    "errors": errors,
                }
            )
        return {"histogram_us": slots_of(session.map("histogram")), "sums": sums}

    def lines(self, event: Record) -> list[str]:
        failed = ", FAILED" if event["failed"] else ""
        return [
            f"{event['disk']}: {event['operation']} of {int(event['bytes'])} bytes at sector"
            f" {int(event['sector'])} took {duration(event['queue_ns'] + event['device_ns'])}"
            f" (queue {duration(event['queue_ns'])}, device {duration(event['device_ns'])})"
            f" for {who(event['task'])}{failed}"
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        slots = summary["histogram_us"]
        return [
            histogram(
                f"block I/O: {sum(slots)} requests in {recording.seconds:.1f} s,"
                f" half below {duration(quantile(slots, 0.5))},"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            Table(
                "requests by device, control group and process",
                (
                    "disk",
                    "cgroup",
                    "process",
                    "pid",
                    "operation",
                    "requests",
                    "MiB",
                    "in queue",
                    "in device",
                    "longest",
                    "errors",
                ),
                [
                    (
                        s["disk"],
                        s["cgroup"],
                        s["comm"],
                        s["pid"],
                        s["operation"],
                        s["count"],
                        f"{s['bytes'] / 2**20:.1f}",
                        duration(s["queue_ns"] / max(s["count"], 1)),
                        duration(s["device_ns"] / max(s["count"], 1)),
                        duration(s["max_ns"]),
                        s["errors"],
                    )
                    for s in top_rows(summary["sums"], "total_ns", top)
                ],
            ),
        ]
