"""`connections`: how long TCP connections take to be made, which fail, what goes over them."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from tegu.probe.network import AF_INET, address
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, histogram, quantile, who
from tegu.probe.tool import WHO, Names, Need, Tool, slots_of, text, top_rows, unpack_who

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Connections"]

_EVENT = struct.Struct(f"<QQIiIHH16s{WHO}")
_KEY = struct.Struct("<Q16sIHH16sII")
_SUMS = struct.Struct("<QQQQQQQQQq")
_FAILED = 1


class Connections(Tool):
    """How long do TCP connections take to be made, which fail, and what goes over them?

    Outgoing ones by process and destination: how many, how long from the first segment to the
    answer, how many failed and why. As they close, of these and of incoming ones: bytes each way,
    segments sent again, round trip. One that fails, or takes the threshold (100 ms) or more, is
    shown by itself. Connections that were there before, or are there after, are not in the sums.
    """

    name = "connections"
    group = "net"
    question = "How long do connections take to be made, which fail, what goes over them?"
    facility = "the tracepoint inet_sock_set_state"
    overhead = "a short program for each change of a TCP connection's state"
    object_name = "connections"
    controller = "unified"
    needs = (
        Need("tracepoint", "inet_sock_set_state"),
        Need("member", "tcp_sock.bytes_acked"),
        Need("member", "tcp_sock.total_retrans"),
    )
    threshold_ns = 100_000_000
    example = "Example: tegu probe connections --seconds 30 --threshold 20ms"

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, took, kind, error, namespace, family, port, other = values[:8]
        return {
            "at_ns": at,
            "took_ns": took,
            "failed": kind == _FAILED,
            "error": _error(error),
            "to": address(family != AF_INET, other, port),
            "namespace": namespace,
            "task": unpack_who(values[8:12], names),
        }

    def summarize(self, session: Session) -> Record:
        flows = []
        for key, values in session.map("sums").items():
            cgroup, comm, namespace, family, port, other, passive, _ = _KEY.unpack(key)
            count, total, longest, failed, closed, sent, received, again, trip, error = (
                _SUMS.unpack(values[0])
            )
            six = family != AF_INET
            flows.append(
                {
                    "direction": "in" if passive else "out",
                    "comm": text(comm),
                    "cgroup": session.names.groups.name(cgroup) if cgroup else None,
                    "peer": address(six, other, 0 if passive else port),
                    "port": port,
                    "namespace": namespace,
                    "count": count,
                    "total_ns": total,
                    "max_ns": longest,
                    "failed": failed,
                    "error": _error(error),
                    "closed": closed,
                    "sent_bytes": sent,
                    "received_bytes": received,
                    "bytes": sent + received,
                    "again": again,
                    "round_trip_us": trip,
                }
            )
        return {"histogram_us": slots_of(session.map("histogram")), "flows": flows}

    def lines(self, event: Record) -> list[str]:
        took = duration(event["took_ns"])
        if event["failed"]:
            how = f"failed after {took} ({event['error'] or 'given up'})"
        else:
            how = f"took {took}"
        return [f"{who(event['task'])}: connection to {event['to']} {how}"]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        slots = recording.summary["histogram_us"]
        out = [f for f in recording.summary["flows"] if f["direction"] == "out"]
        return [
            histogram(
                f"connections made: {sum(slots)} in {recording.seconds:.1f} s,"
                f" half below {duration(quantile(slots, 0.5))},"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            Table(
                "to whom, and how long until they answered",
                ("process", "cgroup", "to", "made", "failed", "why", "on average", "longest"),
                [
                    (
                        f["comm"],
                        f["cgroup"] or "",
                        f["peer"],
                        f["count"],
                        f["failed"],
                        f["error"] or "",
                        duration(f["total_ns"] / max(f["count"], 1)),
                        duration(f["max_ns"]),
                    )
                    for f in top_rows(out, "total_ns", top)
                ],
            ),
            Table(
                "what went over those that closed",
                (
                    "process",
                    "cgroup",
                    "peer",
                    "port",
                    "closed",
                    "MiB sent",
                    "MiB received",
                    "sent again",
                    "round trip",
                ),
                [
                    (
                        f["comm"] or "(incoming)",
                        f["cgroup"] or "",
                        f["peer"],
                        f["port"],
                        f["closed"],
                        f"{f['sent_bytes'] / 2**20:.2f}",
                        f"{f['received_bytes'] / 2**20:.2f}",
                        f["again"],
                        duration(f["round_trip_us"] * 1e3),
                    )
                    for f in top_rows(recording.summary["flows"], "bytes", top)
                    if f["closed"]
                ],
            ),
        ]


def _error(number: int) -> str | None:
    return errno.errorcode.get(number, str(number)) if number else None
