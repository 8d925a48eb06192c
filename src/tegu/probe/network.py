"""What the probes of the network say of sockets: addresses and states."""

from __future__ import annotations

import ipaddress

__all__ = ["AF_INET", "STATES", "address"]

AF_INET = 2
STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
}
"""enum of include/net/tcp_states.h."""


def address(six: bool, raw: bytes, port: int = 0) -> str:
    """Return an address of 16 octets (4 used for IPv4) with its port, as people write them."""
    if six:
        given = ipaddress.IPv6Address(raw)
        mapped = given.ipv4_mapped
        shown = str(mapped) if mapped else f"[{given}]"
    else:
        shown = str(ipaddress.IPv4Address(raw[:4]))
    return f"{shown}:{port}" if port else shown
