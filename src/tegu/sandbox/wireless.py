"""What zygotes and boxes say to the supervisor, without Python's socket and json modules.

A message is text fields parted by NUL, in both directions: boxes are not trusted, so that anything
more clever would be a parser to attack, and C reads it as well (native/box.c). Descriptors go along
as SCM_RIGHTS (unix(7)).
"""

from __future__ import annotations

import _socket
import os
import sys
from collections.abc import Sequence

__all__ = ["MAX_FDS", "MAX_MESSAGE", "descriptors", "receive", "split", "tell"]

MAX_MESSAGE = 120 * 1024
"""Bytes in one message: below the send buffer of a UNIX socket (212,992), and below the size
(131,072) from which malloc(3) asks the kernel for every buffer anew."""
MAX_FDS = 64
_SOL_SOCKET = 1
_SCM_RIGHTS = 1
_MSG_CMSG_CLOEXEC = 0x40000000
_INT = 4


def tell(link: _socket.socket, *fields: str, fds: Sequence[int] = ()) -> None:
    """Send text fields, and descriptors, as one message."""
    data = "\0".join(fields).encode(errors="surrogateescape")
    if fds:
        rights = b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in fds)
        link.sendmsg([data], [(_SOL_SOCKET, _SCM_RIGHTS, rights)])
    else:
        link.send(data)


def split(data: bytes) -> list[str]:
    """Return the fields of a message from the supervisor, as they were told."""
    return data.decode(errors="surrogateescape").split("\0")


def receive(link: _socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive one message and its descriptors; empty bytes mean that the other side is gone."""
    data, ancillary, _, _ = link.recvmsg(
        MAX_MESSAGE, _socket.CMSG_SPACE(MAX_FDS * _INT), flags | _MSG_CMSG_CLOEXEC
    )
    fds = descriptors(ancillary)
    if not data:
        for fd in fds:  # an empty message may bring some along
            os.close(fd)
        fds = []
    return data, fds


def descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in what recvmsg gave beside the data."""
    fds = []
    for level, kind, rights in ancillary:
        if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
            whole = len(rights) - len(rights) % _INT
            fds += [
                int.from_bytes(rights[i : i + _INT], sys.byteorder) for i in range(0, whole, _INT)
            ]
    return fds
