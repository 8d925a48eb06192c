"""Waiting for a server's greeting on a port that accepts long before anybody is at home.

QEMU's user-mode network takes a connection at once, and passes it on when the guest has a network.
A connection that came too early is passed on again only after several seconds, while a busy guest
may need seconds for its greeting: so a fresh connection is made every second, the earlier ones are
kept for a while, and the first greeting counts. The longer it takes, the slower the guest seems to
be, and the rarer fresh ones become: each costs it a process, and too many at once are all refused.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

__all__ = ["knock"]

_EVERY: Final = 1.0
_PART: Final = 20  # after n seconds a fresh connection is made every n/20 seconds
_KEPT: Final = 8  # so many of these intervals a connection may take to greet


def knock(
    host: str,
    port: int,
    greeting: bytes,
    timeout: float,
    gone: Callable[[], bool],
    *,
    waited: float = 0,
) -> str | None:
    """Return None once a server greets with `greeting`, or after `timeout` seconds why not.

    `gone` is asked with each try whether there is any sense in going on; `waited` seconds have
    passed already.
    """
    started = time.monotonic() - waited
    deadline = time.monotonic() + timeout
    why = "no greeting"
    with selectors.DefaultSelector() as waiting:
        next_one = time.monotonic()
        try:
            while (now := time.monotonic()) < deadline:
                if now >= next_one:
                    if gone():
                        break
                    every = max(_EVERY, (now - started) / _PART)
                    _drop_old(waiting, now - every * _KEPT)
                    failed = _connect(waiting, host, port, now)
                    why = failed or why
                    next_one = now + every
                for key, _ in waiting.select(max(0.0, min(next_one, deadline) - now)):
                    said = _read(key.fileobj)
                    if said.startswith(greeting):
                        return None
                    waiting.unregister(key.fileobj)
                    _close(key.fileobj)
                    why = "its port is closed" if not said else "something else answers its port"
        finally:
            _drop_old(waiting, deadline + timeout)
    return why


def _connect(waiting: selectors.BaseSelector, host: str, port: int, now: float) -> str | None:
    try:
        # To a port of this host: accepted or refused at once.
        line = socket.create_connection((host, port), timeout=2)
    except OSError as e:
        return e.strerror or str(e)
    line.setblocking(False)
    waiting.register(line, selectors.EVENT_READ, now)
    return None


def _read(line: object) -> bytes:
    if not isinstance(line, socket.socket):
        return b""
    try:
        return line.recv(64)
    except OSError:
        return b""


def _close(line: object) -> None:
    if isinstance(line, socket.socket):
        line.close()


def _drop_old(waiting: selectors.BaseSelector, before: float) -> None:
    for key in list(waiting.get_map().values()):
        if key.data < before:
            waiting.unregister(key.fileobj)
            _close(key.fileobj)
