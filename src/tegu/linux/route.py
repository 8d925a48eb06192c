"""Addresses and routes of a network namespace (rtnetlink(7))."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct

from tegu.linux.netlink import Netlink

__all__ = ["BROADCAST", "LOCAL", "UNICAST", "Routes"]

UNICAST, LOCAL, BROADCAST = 1, 2, 3
"""Types of a route (RTN_*): elsewhere, this host, all hosts of a network."""

_NETLINK_ROUTE = 0
_NEW_ADDRESS, _NEW_ROUTE, _GET_ROUTE = 20, 24, 26
_CREATE = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL
_LOOPBACK = 1
"""The index of `lo`: it is the first that a namespace has."""
_TABLE_LOCAL = 255
_STATIC = 4
_SCOPE_HOST = 254
_NO_DAD = 0x02
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


class Routes:
    """A socket to the kernel's routing of the namespace that it was made in; use it as a context
    manager, or close it. Raises OSError."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETLINK_ROUTE)

    def __enter__(self) -> Routes:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.__exit__()

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.__exit__()

    def type_of(self, address: Address) -> int:
        """Return the type of the route that is taken to an address; 0 when there is none."""
        body = struct.pack("=8BI", _family(address), address.max_prefixlen, *bytes(6), 0)
        try:
            answer = self._netlink.get(_GET_ROUTE, body + _attribute(_RTA_DST, address.packed))
        except OSError as e:
            if e.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                return 0
            raise
        return answer[7]

    def own(self, address: Address) -> None:
        """Give loopback an address, and deliver all addresses of its family here, with `address`
        as where what is sent comes from."""
        family, v4 = _family(address), address.version == 4
        scope = _SCOPE_HOST if v4 else 0
        flags = 0 if v4 else _NO_DAD
        body = struct.pack("=4BI", family, address.max_prefixlen, flags, scope, _LOOPBACK)
        body += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
        self._ask(_NEW_ADDRESS, body, f"address {address}")
        kind = (0, 0, 0, _TABLE_LOCAL, _STATIC, scope, LOCAL)
        body = struct.pack("=8BI", family, *kind, 0)
        body += _attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK))
        body += _attribute(_RTA_PREFSRC, address.packed)
        self._ask(_NEW_ROUTE, body, f"routes of {address}")

    def _ask(self, kind: int, body: bytes, what: str) -> None:
        code = self._netlink.ask_all(kind, [body], _CREATE)[0]
        if code:
            raise OSError(code, os.strerror(code), what)
