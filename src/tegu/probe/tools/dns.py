"""`dns`: how long names take to be resolved, and which are never answered."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from tegu.probe.network import AF_INET, address
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, histogram, quantile, who
from tegu.probe.tool import (
    WHO,
    Need,
    Tool,
    slots_of,
    text,
    top_rows,
    unpack_sums,
    unpack_who,
)
from tegu.probe.tool import Names as Numbers

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Names", "question"]

_QUERY = struct.Struct(f"<Q16sII{WHO}80s")
_EVENT = struct.Struct("<QQII")
_SERVER = struct.Struct("<16sII")
# RFC 1035, section 4.1.1, and RFC 2136
_CODES = ("no error", "malformed", "server failure", "no such name", "not implemented", "refused")
_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA"}
_TYPES |= {33: "SRV", 64: "SVCB", 65: "HTTPS", 255: "ANY"}
_UNANSWERED_NS = 1_000_000_000


class Names(Tool):
    """How long do names take to be resolved, and which are never answered?

    Queries and answers over UDP port 53, on all devices (the loopback too, where a local resolver
    listens): how long by server, what failed, and what has had no answer for a second. One that
    takes the threshold (50 ms) or more, or fails (no such name is an answer), is shown by itself
    with the question. DNS over TCP, TLS and HTTPS is not seen.
    """

    name = "dns"
    group = "net"
    question = "How long do names take to be resolved, and which are never answered?"
    facility = "the tracepoints net_dev_queue and netif_receive_skb"
    overhead = "a look at the ports of every packet, twice: as it leaves and as it comes"
    object_name = "dns"
    controller = "unified"
    needs = (Need("tracepoint", "net_dev_queue"), Need("tracepoint", "netif_receive_skb"))
    threshold_ns = 50_000_000
    example = "Example: tegu probe dns --seconds 30 --threshold 20ms"

    def decode(self, data: bytes, names: Numbers) -> Record:
        at, took, code, _ = _EVENT.unpack_from(data)
        return {
            "at_ns": at,
            "took_ns": took,
            "answer": _code(code),
            **_query(data[_EVENT.size :], names),
        }

    def summarize(self, session: Session) -> Record:
        servers, unanswered = [], []
        for key, values in session.map("servers").items():
            server, family, code = _SERVER.unpack(key)
            sums = unpack_sums(values)
            servers.append(
                {
                    "server": address(family != AF_INET, server),
                    "answer": _code(code),
                    "count": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                }
            )
        now = time.monotonic_ns()
        for raw in (values[0] for _, values in session.map("queries").items()):
            waited = now - struct.unpack_from("<Q", raw)[0]
            if waited >= _UNANSWERED_NS:
                unanswered.append({"waited_ns": waited, **_query(raw, session.names)})
        return {
            "histogram_us": slots_of(session.map("histogram")),
            "servers": servers,
            "unanswered": unanswered,
        }

    def lines(self, event: Record) -> list[str]:
        answer = "" if event["answer"] == _CODES[0] else f": {event['answer']}"
        return [
            f"{who(event['task'])}: {event['question']} from {event['server']} took"
            f" {duration(event['took_ns'])}{answer}"
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        slots = recording.summary["histogram_us"]
        unanswered = recording.summary["unanswered"]
        return [
            histogram(
                f"names: {sum(slots)} answers in {recording.seconds:.1f} s,"
                f" half below {duration(quantile(slots, 0.5))},"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            Table(
                "by server",
                ("server", "answer", "times", "on average", "longest"),
                [
                    (
                        s["server"],
                        s["answer"],
                        s["count"],
                        duration(s["total_ns"] / max(s["count"], 1)),
                        duration(s["max_ns"]),
                    )
                    for s in top_rows(recording.summary["servers"], "total_ns", top)
                ],
            ),
            Table(
                f"no answer for a second or more: {len(unanswered)}",
                ("process", "cgroup", "question", "server", "for"),
                [
                    (
                        u["task"]["comm"],
                        u["task"]["cgroup"],
                        u["question"],
                        u["server"],
                        duration(u["waited_ns"]),
                    )
                    for u in top_rows(unanswered, "waited_ns", top)
                ],
            ),
        ]


def _query(data: bytes, names: Numbers) -> Record:
    values = _QUERY.unpack_from(data)
    _, server, family, length = values[:4]
    return {
        "server": address(family != AF_INET, server),
        "question": question(values[8][:length]),
        "task": unpack_who(values[4:8], names),
    }


def question(data: bytes) -> str:
    """Return `NAME TYPE` of a question section (RFC 1035, section 4.1.2), or what of it is there.

    Anybody may send anything: what is no name ends the text with "...".
    """
    labels: list[str] = []
    at = 0
    while at < len(data):
        size = data[at]
        if size == 0:
            kind = data[at + 1 : at + 3]
            number = int.from_bytes(kind, "big")
            shown = _TYPES.get(number, f"TYPE{number}") if len(kind) == 2 else "..."
            return f"{'.'.join(labels) or '.'} {shown}"
        if size > 63 or at + 1 + size > len(data):
            break
        labels.append(text(data[at + 1 : at + 1 + size].replace(b"\0", b"?")))
        at += 1 + size
    return f"{'.'.join(labels)}..."


def _code(number: int) -> str:
    return _CODES[number] if number < len(_CODES) else f"code {number}"
