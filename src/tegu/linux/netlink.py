"""Raw netlink: one request, all its answers (netlink(7)), in any network namespace of ours."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

__all__ = ["Attributes", "Netlink", "attributes"]

# linux/netlink.h
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RECEIVE = 1 << 20

Attributes = dict[int, bytes]
"""Attributes by their type; nested ones are bytes to be given to `attributes` again."""


def attributes(data: bytes) -> Attributes:
    """Take attributes apart; what does not fit the end is left out, as the kernel's own do."""
    found: Attributes = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


class Netlink:
    """A netlink socket of the given protocol; use it as a context manager. Raises OSError."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.settimeout(10)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Send a request for a list; yield the body of each answer. Raises OSError."""
        self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
        while True:
            for answer, payload in _messages(self._socket.recv(_RECEIVE)):
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    _raise(payload)
                    return
                yield payload

    def get(self, kind: int, body: bytes) -> bytes:
        """Send a request that has one answer; return its body. Raises OSError."""
        self._send(kind, NLM_F_REQUEST, body)
        for answer, payload in _messages(self._socket.recv(_RECEIVE)):
            if answer == _NLMSG_ERROR:
                _raise(payload)
            return payload
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO), "netlink")

    def ask_all(self, kind: int, bodies: list[bytes], more_flags: int = 0) -> list[int]:
        """Send requests in batches, each to be acknowledged; return an errno (0: done) for each."""
        results: list[int] = []
        for start in range(0, len(bodies), 64):
            batch = bodies[start : start + 64]
            raw = bytearray()
            for body in batch:
                self._sequence += 1
                flags = NLM_F_REQUEST | NLM_F_ACK | more_flags
                raw += _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body
                raw += bytes(-len(raw) % 4)
            self._socket.send(raw)
            left = len(batch)
            while left:
                for answer, payload in _messages(self._socket.recv(_RECEIVE)):
                    if answer == _NLMSG_ERROR:
                        results.append(-struct.unpack_from("=i", payload)[0])
                        left -= 1
        return results

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        head = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0)
        self._socket.send(head + body)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _raise(payload: bytes) -> None:
    code = -struct.unpack_from("=i", payload)[0]
    if code:
        raise OSError(code, os.strerror(code), "netlink")
