"""TCP sockets as the kernel knows them (sock_diag(7)), and how to end them.

`struct inet_diag_msg` of linux/inet_diag.h. SOCK_DESTROY needs CONFIG_INET_DIAG_DESTROY and
CAP_NET_ADMIN; for a socket in TIME-WAIT it means: forget it now.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tegu.linux.netlink import Netlink

__all__ = ["LISTEN", "TIME_WAIT", "TIME_WAIT_MS", "TcpSocket", "destroy", "tcp_sockets"]

_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_SOCK_DESTROY = 21
_NETLINK_SOCK_DIAG = 4
_REQUEST = struct.Struct("=BBBBI48s")
_MESSAGE = struct.Struct("=BBBB48sIIIII")
_ID = struct.Struct("!HH16s16s")  # ports and addresses in network order; then native words
TIME_WAIT = 6  # enum in include/net/tcp_states.h
LISTEN = 10
TIME_WAIT_MS = 60_000
"""TCP_TIMEWAIT_LEN of include/net/tcp.h, which no kernel of a distribution changes."""


class TcpSocket(NamedTuple):
    """A socket: its state, ends (address, port), what its timer has left, and its identity."""

    state: int
    local: tuple[str, int]
    remote: tuple[str, int]
    left_ms: int
    """Of the running timer; in TIME-WAIT, until the socket goes away."""
    uid: int
    inode: int
    family: int
    identity: bytes
    """`struct inet_diag_sockid`: what SOCK_DESTROY takes."""


def tcp_sockets(states: Iterable[int]) -> Iterator[TcpSocket]:
    """Yield the TCP sockets of this network namespace that are in one of `states`.

    Raises OSError (ENOENT where the kernel has no inet_diag).
    """
    mask = sum(1 << s for s in states)
    with Netlink(_NETLINK_SOCK_DIAG) as link:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, mask, bytes(48))
            for body in link.dump(_SOCK_DIAG_BY_FAMILY, request):
                found = parse_message(body)
                if found is not None:
                    yield found


def parse_message(body: bytes) -> TcpSocket | None:
    """Take a `struct inet_diag_msg` apart; None when it is too short."""
    if len(body) < _MESSAGE.size:
        return None
    family, state, _timer, _retrans, identity, expires, _, _, uid, inode = _MESSAGE.unpack_from(
        body
    )
    sport, dport, source, target = _ID.unpack_from(identity)
    size = 4 if family == socket.AF_INET else 16
    kind = socket.AF_INET if size == 4 else socket.AF_INET6
    return TcpSocket(
        state,
        (socket.inet_ntop(kind, source[:size]), sport),
        (socket.inet_ntop(kind, target[:size]), dport),
        expires,
        uid,
        inode,
        family,
        identity,
    )


def destroy(sockets: Iterable[TcpSocket]) -> tuple[int, int]:
    """End these sockets; return how many were ended or gone already, and how many were refused.

    Raises OSError for what concerns all of them: EPERM, EOPNOTSUPP (kernel without the option).
    """
    bodies = [
        _REQUEST.pack(s.family, socket.IPPROTO_TCP, 0, 0, 1 << s.state, s.identity) for s in sockets
    ]
    if not bodies:
        return 0, 0
    with Netlink(_NETLINK_SOCK_DIAG) as link:
        results = link.ask_all(_SOCK_DESTROY, bodies)
    for code in (errno.EPERM, errno.EOPNOTSUPP):
        if code in results:
            raise OSError(code, "the kernel refuses SOCK_DESTROY")
    # ENOENT: it went away by itself meanwhile, which is what was wanted.
    good = sum(r in (0, errno.ENOENT) for r in results)
    return good, len(results) - good
