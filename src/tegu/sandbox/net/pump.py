"""Bytes between two connections, both ways, until both have ended."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

__all__ = ["join", "let_go", "reset"]

_CHUNK = 256 * 1024
"""Bytes that are read at a time; no more wait for a slow reader."""
_NO_LINGER = struct.pack("ii", 1, 0)


def reset(one: socket.socket) -> None:
    """Close a connection so that its other end sees a reset (SO_LINGER with 0, socket(7))."""
    with suppress(OSError):  # it is gone already
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    let_go(one)


def let_go(one: socket.socket) -> None:
    """Close a socket that the event loop may still wait for.

    Told first, as another socket may be given the same number at once.
    """
    loop = asyncio.get_running_loop()
    if one.fileno() >= 0:
        loop.remove_reader(one.fileno())
        loop.remove_writer(one.fileno())
        one.close()


async def _one_way(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _CHUNK):
        await loop.sock_sendall(target, data)
    target.shutdown(socket.SHUT_WR)


async def join(one: socket.socket, other: socket.socket) -> None:
    """Pass on what comes on either, until both have ended; both are closed then, whatever happens.

    An end of file is passed on as such. An error on either resets both, and so does cancelling.
    """
    ways = [asyncio.ensure_future(_one_way(*pair)) for pair in ((one, other), (other, one))]
    try:
        await asyncio.gather(*ways)
    except BaseException as e:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        reset(one)
        reset(other)
        if not isinstance(e, OSError):
            raise
    let_go(one)
    let_go(other)
