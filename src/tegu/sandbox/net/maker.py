"""A box's way out, made in its network namespace by the supervisor before a program runs there.

Loopback gets an address that programs see as theirs, and routes that deliver every address here;
sockets are opened to which all of it is steered (tegu.linux.sklookup). They are handed to the
relay, and no process in the box holds any of them. The namespace belongs to the zygote's user
namespace and the program that steers to none of them, so that root in a box can change neither.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from tegu.linux import libc, sklookup
from tegu.linux.route import Routes
from tegu.sandbox.net.policy import OWN_ADDRESSES, TCP, UDP, Address, Policy, mapped

__all__ = ["DNS_PORT", "Made", "make", "open_low_ports"]

DNS_PORT = 53
_BACKLOG = 128
_BUFFER = 256 * 1024
"""Bytes; the kernel keeps to net.core.rmem_max and wmem_max, and doubles it (socket(7))."""
_IP_RECVORIGDSTADDR = 20  # linux/in.h
_IPV6_RECVORIGDSTADDR = 74  # linux/in6.h
_LOW_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
"""Of the network namespace of the thread that opens it (ip-sysctl.rst); of IPv6 as well."""
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_OWN = [ipaddress.ip_network(n) for n in ("127.0.0.0/8", "::1/128", *map(str, OWN_ADDRESSES))]


@dataclass
class Made:
    """Sockets in the namespace by what they are for ("tcp4", "udp6", "raw4", "dns4" ...), the map
    of addresses, and the link: while it is open, connections are steered."""

    sockets: dict[str, socket.socket] = field(default_factory=dict)
    addresses: sklookup.Addresses | None = None
    link: int = -1

    def let_go(self) -> None:
        """Close what was handed over; the link stays."""
        for one in self.sockets.values():
            one.close()
        self.sockets = {}
        if self.addresses is not None:
            self.addresses.close()
            self.addresses = None

    def close(self) -> None:
        """Close everything: nothing is steered any more."""
        self.let_go()
        if self.link >= 0:
            os.close(self.link)
            self.link = -1


def open_low_ports(network: int) -> None:
    """Let programs of a box listen at ports below 1024, which are root's of the whole host else.

    Root in a box has no power over its network namespace, which is not its own. The thread that
    calls this must end: it stays in that namespace (`network` is its descriptor). Raises OSError.
    """
    libc.setns(network, libc.CLONE_NEWNET)
    _LOW_PORTS.write_text("0")


def make(network: int, policy: Policy) -> Made:
    """Make the way out of the box whose network namespace is `network`.

    The thread that calls this must end: it stays in that namespace, from which a user's supervisor
    would not be let back. Raises OSError.
    """
    made = Made()
    try:
        open_low_ports(network)
        _open(made)
        steered = [made.sockets.get(name) for name in ("tcp4", "udp4", "tcp6", "udp6")]
        fds = [-1 if one is None else one.fileno() for one in steered]
        made.addresses, made.link = sklookup.steer(network, fds)
        for protocol, port, place, allow in policy.table():
            what = sklookup.ADMIT if allow else sklookup.DENY
            made.addresses.set(protocol, port, *mapped(place), what)
        for protocol in (TCP, UDP):  # last: what is denied elsewhere is the box's own here
            for port in policy.ports[protocol]:
                for own in _OWN:
                    made.addresses.set(protocol, port, *mapped(own), sklookup.OWN)
    except BaseException:
        made.close()
        raise
    return made


def _open(made: Made) -> None:
    with Routes() as routes:
        for address in OWN_ADDRESSES:
            if address.version == 6 and not _has_ipv6():
                continue
            routes.own(address)
            _open_for(made, address)


def _has_ipv6() -> bool:
    """Whether loopback has ::1 here: not where IPv6 is switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _open_for(made: Made, address: Address) -> None:
    v = address.version
    family = socket.AF_INET if v == 4 else socket.AF_INET6
    kinds = (
        (f"tcp{v}", socket.SOCK_STREAM, 0, (str(address), 0)),
        (f"udp{v}", socket.SOCK_DGRAM, 0, (str(address), 0)),
        (f"raw{v}", socket.SOCK_RAW, socket.IPPROTO_RAW, None),
        (f"dns{v}", socket.SOCK_DGRAM, 0, (_LOOPBACK[v], DNS_PORT)),
        (f"dnstcp{v}", socket.SOCK_STREAM, 0, (_LOOPBACK[v], DNS_PORT)),
    )
    for name, kind, protocol, place in kinds:
        one = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        made.sockets[name] = one
        if name == "udp4":
            one.setsockopt(socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1)
        elif name == "udp6":
            one.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
        if place is not None:
            one.bind(place)
        if kind == socket.SOCK_STREAM:
            # Of a size of its own, as what waits there is counted against no box's memory.
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                one.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER)
            one.listen(_BACKLOG)
