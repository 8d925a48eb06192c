"""`drops`: which packets the kernel drops and why, and which connections send again."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tegu.linux.libbpf import KernelTypes
from tegu.probe.network import STATES, address
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Need, Tool, text, top_rows

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Drops"]

_KEY = struct.Struct("<QQIIHBBI16s")
_VALUE = struct.Struct("<Q16s16s2s2sI")
_FLOW = struct.Struct("<QIHBB16s16sHHI")
_PROTOCOLS = {0x0800: "IPv4", 0x86DD: "IPv6", 0x0806: "ARP"}
_TRANSPORTS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
_AF_INET = 2


class Drops(Tool):
    """Which packets does the kernel drop, why and where? Which connections send again?

    Every dropped packet is counted by the kernel's own reason, the function that dropped it,
    protocol, device, network namespace and the control group of its socket, with the last one's
    addresses as an example; every TCP retransmission by connection and control group. Some reasons
    are no trouble: a packet that nobody listens for is dropped, too.
    """

    name = "drops"
    group = "net"
    question = "Which packets are dropped, why and where; which connections send again?"
    facility = "the tracepoints kfree_skb (with reasons, Linux 5.17) and tcp_retransmit_skb"
    overhead = "one short program for each dropped packet; none without drops"
    object_name = "drops"
    controller = "unified"
    selects = False  # most packets are dropped before anyone knows whose they are
    needs = (
        Need("tracepoint", "kfree_skb"),
        Need("enum", "skb_drop_reason"),
        Need("tracepoint", "tcp_retransmit_skb"),
    )
    example = "Example: tegu probe drops --seconds 30 --json"

    def summarize(self, session: Session) -> Record:
        with KernelTypes() as types:
            reasons = types.enum("skb_drop_reason")
        groups = session.names.groups
        drops = []
        for key, values in session.map("drops").items():
            place, cgroup, reason, namespace, protocol, transport, _, _, device = _KEY.unpack(key)
            count, source, target, from_port, to_port, _ = _VALUE.unpack(values[0])
            drops.append(
                {
                    "count": count,
                    "reason": _reason(reasons, reason),
                    "place": session.names.symbols.kernel_symbols.name(place),
                    "protocol": _PROTOCOLS.get(protocol, f"{protocol:#06x}"),
                    "transport": _TRANSPORTS.get(transport, str(transport or "")),
                    "device": text(device),
                    "namespace": namespace,
                    "cgroup": groups.name(cgroup) if cgroup else None,
                    "from": address(protocol == 0x86DD, source, struct.unpack(">H", from_port)[0]),
                    "to": address(protocol == 0x86DD, target, struct.unpack(">H", to_port)[0]),
                }
            )
        again = []
        for key, values in session.map("retransmits").items():
            cgroup, namespace, family, state, _, source, target, sport, dport, _ = _FLOW.unpack(key)
            again.append(
                {
                    "count": struct.unpack("<Q", values[0])[0],
                    "from": address(family != _AF_INET, source, sport),
                    "to": address(family != _AF_INET, target, dport),
                    "state": STATES.get(state, str(state)),
                    "namespace": namespace,
                    "cgroup": groups.name(cgroup),
                }
            )
        return {"drops": drops, "retransmits": again}

    def lines(self, event: Record) -> list[str]:
        return []  # there are none

    def tables(self, recording: Recording, top: int) -> list[Table]:
        drops, again = recording.summary["drops"], recording.summary["retransmits"]
        return [
            Table(
                f"{sum(int(d['count']) for d in drops)} packets dropped"
                f" in {recording.seconds:.1f} s",
                ("packets", "reason", "in", "protocol", "device", "sender's cgroup", "example"),
                [
                    (
                        d["count"],
                        d["reason"],
                        d["place"],
                        f"{d['protocol']} {d['transport']}".strip(),
                        d["device"],
                        d["cgroup"] or "",
                        f"{d['from']} > {d['to']}",
                    )
                    for d in top_rows(drops, "count", top)
                ],
            ),
            Table(
                f"{sum(int(r['count']) for r in again)} TCP segments sent again",
                ("segments", "from", "to", "state", "cgroup"),
                [
                    (r["count"], r["from"], r["to"], r["state"], r["cgroup"])
                    for r in top_rows(again, "count", top)
                ],
            ),
        ]


def _reason(names: dict[int, str], reason: int) -> str:
    """Return the kernel's name of it; those of subsystems have their number in the upper half."""
    if reason in names:
        return names[reason].removeprefix("SKB_DROP_REASON_")
    return f"subsystem {reason >> 16}, reason {reason & 0xFFFF}"
