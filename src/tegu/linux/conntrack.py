"""The kernel's table of tracked connections, over ctnetlink.

The messages are those of linux/netfilter/nfnetlink_conntrack.h.

Needs the module nf_conntrack_netlink and CAP_NET_ADMIN; both are the kernel's to refuse (OSError).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tegu.linux.netlink import Netlink, attributes

__all__ = ["Flow", "flows"]

_NETLINK_NETFILTER = 12
_CTNETLINK_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_TUPLE_ORIG, _TUPLE_IP, _TUPLE_PROTO = 1, 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_PROTO_NUM, _DST_PORT = 1, 3


class Flow(NamedTuple):
    """A tracked connection in its original direction."""

    protocol: int
    source: str
    target: str
    port: int
    """Destination port; 0 where the protocol has none."""


def flows() -> Iterator[Flow]:
    """Yield all tracked connections of this network namespace. Raises OSError."""
    with Netlink(_NETLINK_NETFILTER) as link:
        for body in link.dump(_CTNETLINK_GET, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)):
            flow = parse_flow(body)
            if flow is not None:
                yield flow


def parse_flow(body: bytes) -> Flow | None:
    """Take one answer apart; None when it lacks addresses."""
    original = attributes(attributes(body[4:]).get(_TUPLE_ORIG, b""))
    ends = attributes(original.get(_TUPLE_IP, b""))
    protocol = attributes(original.get(_TUPLE_PROTO, b""))
    for family, source, target, size in (
        (socket.AF_INET, _V4_SRC, _V4_DST, 4),
        (socket.AF_INET6, _V6_SRC, _V6_DST, 16),
    ):
        a, b = ends.get(source, b""), ends.get(target, b"")
        if len(a) == size and len(b) == size:
            port = protocol.get(_DST_PORT, b"")
            return Flow(
                (protocol.get(_PROTO_NUM) or b"\0")[0],
                socket.inet_ntop(family, a),
                socket.inet_ntop(family, b),
                int.from_bytes(port, "big") if len(port) == 2 else 0,
            )
    return None
