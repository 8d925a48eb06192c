"""Bytes between two connections, both ways, until both have ended."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

__all__ = ["connect_inside", "join", "let_go", "reset", "take"]

_CHUNK = 256 * 1024
"""Bytes that are read at a time; no more wait for a slow reader."""
_PAUSE = 0.1
_CONNECT = 10.0
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


async def connect_inside(one: socket.socket, port: int) -> None:
    """Connect a socket that a box gave, which is of the box's network, to what listens there.

    A socket belongs to the network in which it was made (network_namespaces(7)). Raises OSError,
    TimeoutError among them.
    """
    one.setblocking(False)
    if (one.family, one.type) != (socket.AF_INET, socket.SOCK_STREAM):
        raise OSError(errno.EPROTOTYPE, "the box gave something else than a socket for TCP")
    async with asyncio.timeout(_CONNECT):
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))


def take(listener: socket.socket, again: Callable[[], None]) -> socket.socket | None:
    """Accept a connection; None when it is gone again, or there are no descriptors for it.

    Then it waits in the queue for a while, and not in a loop that spins: `again` is what the event
    loop calls for the listener.
    """
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None
    except OSError as e:
        if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_PAUSE, _listen_again, listener, again)
        return None


def _listen_again(listener: socket.socket, again: Callable[[], None]) -> None:
    if listener.fileno() >= 0:
        asyncio.get_running_loop().add_reader(listener, again)


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
