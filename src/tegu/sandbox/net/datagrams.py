"""Datagrams of a box and the answers to them.

What goes out comes on a socket to which all is steered, with where it was sent to beside it. What
comes back has to come from there: it is written as a whole packet, by a raw socket in the box's
network that only the relay holds (raw(7)).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress

from tegu.sandbox.net.policy import Address

__all__ = ["Datagrams", "packet"]

_MOST = 256
"""Conversations of a box at a time; the one that was silent longest makes room."""
_IDLE = 60.0
_SIZE = 65535
_ORIGINAL = {(socket.IPPROTO_IP, 20): 4, (socket.IPPROTO_IPV6, 74): 16}
"""Control messages with where a datagram was sent to, and the length of an address in them."""
_UDP = 17
_HOPS = 64


def _original(ancillary: list[tuple[int, int, bytes]]) -> tuple[Address, int] | None:
    for level, kind, data in ancillary:
        size = _ORIGINAL.get((level, kind))
        if size is not None:
            start = 4 if size == 4 else 8  # struct sockaddr_in and sockaddr_in6
            port = int.from_bytes(data[2:4], "big")
            return ipaddress.ip_address(data[start : start + size]), port
    return None


def _sum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: tuple[Address, int], target: tuple[Address, int], data: bytes) -> bytes:
    """Return a whole IPv4 or IPv6 packet with a datagram in it (RFC 768, 791, 8200)."""
    length = 8 + len(data)
    head = struct.pack("!HHHH", source[1], target[1], length, 0)
    pair = source[0].packed + target[0].packed
    pseudo = pair + struct.pack("!II", length, _UDP)
    if source[0].version == 4:
        pseudo = pair + struct.pack("!BBH", 0, _UDP, length)
    check = _sum(pseudo + head + data) or 0xFFFF
    datagram = head[:6] + struct.pack("!H", check) + data
    if source[0].version == 4:
        first = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, _HOPS, _UDP, 0)
        return first + pair + datagram
    return struct.pack("!IHBB", 6 << 28, length, _UDP, _HOPS) + pair + datagram


_Key = tuple[Address, int, Address, int]


class Datagrams:
    """The conversations of one box, each by a socket of its own outside."""

    def __init__(
        self,
        sockets: Mapping[str, socket.socket],
        allowed: Callable[[Address, int], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._allowed = allowed
        self._sockets = sockets
        self._open: OrderedDict[_Key, tuple[socket.socket, asyncio.TimerHandle]] = OrderedDict()
        for name in ("udp4", "udp6"):
            if name in sockets:
                self._loop.add_reader(sockets[name], self._sent, sockets[name])

    def close(self) -> None:
        """End all; the sockets in the box's network are the caller's to close."""
        for name in ("udp4", "udp6"):
            if name in self._sockets:
                self._loop.remove_reader(self._sockets[name])
        for key in list(self._open):
            self._drop(key)

    def _sent(self, listener: socket.socket) -> None:
        """A datagram of the box's."""
        try:
            data, ancillary, _, sender = listener.recvmsg(_SIZE, 256)
        except OSError:
            return
        target = _original(ancillary)
        if target is None or not self._allowed(*target):
            return
        key = (ipaddress.ip_address(sender[0]), sender[1], *target)
        link = self._link(key)
        if link is not None:
            try:
                link.send(data)
            except BlockingIOError:
                return  # as a network does that is full
            except OSError:
                self._drop(key)

    def _link(self, key: _Key) -> socket.socket | None:
        found = self._open.get(key)
        if found is None:
            link = self._connected(key)
        else:
            link = found[0]
            found[1].cancel()
        if link is not None:
            self._open[key] = (link, self._loop.call_later(_IDLE, self._drop, key))
            self._open.move_to_end(key)
        return link

    def _connected(self, key: _Key) -> socket.socket | None:
        while len(self._open) >= _MOST:
            self._drop(next(iter(self._open)))
        family = socket.AF_INET if key[2].version == 4 else socket.AF_INET6
        try:
            link = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            return None
        try:
            link.connect((str(key[2]), key[3]))
        except OSError:
            link.close()
            return None
        self._loop.add_reader(link, self._answered, key, link)
        return link

    def _answered(self, key: _Key, link: socket.socket) -> None:
        try:
            data = link.recv(_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._drop(key)  # such as "connection refused": nobody is there
            return
        client, port, target, target_port = key
        raw = self._sockets.get(f"raw{client.version}")
        if raw is not None:
            with suppress(OSError):  # a full queue, or a box that is just ending
                raw.sendto(packet((target, target_port), (client, port), data), (str(client), 0))

    def _drop(self, key: _Key) -> None:
        found = self._open.pop(key, None)
        if found is not None:
            found[1].cancel()
            self._loop.remove_reader(found[0])
            found[0].close()
