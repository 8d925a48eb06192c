"""The relay: a process without rights of its own that carries what boxes may send and receive.

It stands in the host's network, as a user who owns nothing, can start no process and gain no
capability. It holds the sockets in boxes' networks to which all is steered (`maker`), and listens
at the ports that are published. Messages are those of tegu.sandbox.wireless.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from tegu.linux import confine, libc
from tegu.linux.route import Routes
from tegu.linux.sklookup import Addresses
from tegu.sandbox import wireless
from tegu.sandbox.net.policy import Policy
from tegu.sandbox.net.pump import connect_inside, join, let_go, reset, take
from tegu.sandbox.net.upstream import Upstream
from tegu.sandbox.net.way import Way

__all__ = ["RELAY_ID", "main"]

RELAY_ID = 0x6FFF_7FFF
"""The user id of root's relay: the last of the range that sandboxes use (tegu.sandbox.bare)."""
_MOST = 512
"""Connections of one published port at a time."""
_MOST_TOLD = 64
_TELL_AGAIN = 60.0


def _give_up_rights(user: int) -> None:
    libc.parent_death_signal(signal.SIGKILL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    confine.no_new_privileges()
    confine.keep_capabilities([], bounding=False)
    confine.undumpable()
    libc.parent_death_signal(signal.SIGKILL)  # the change of ids undid it


class _Relay:
    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.over = asyncio.Event()
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._routes = Routes()
        self._source = Upstream()
        self._ways: dict[str, Way] = {}
        self._ports: dict[str, _Port] = {}
        self._told: dict[str, set[str]] = {}
        self._loop.add_reader(link, self._heard)

    def _heard(self) -> None:
        try:
            data, fds = wireless.receive(self._link)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.over.set()
            return
        words = wireless.split(data)
        op, name = words[0], words[1]
        if op == "network":
            self._open(name, words[2].split(","), words[3:], fds)
        elif op == "gone":
            way = self._ways.pop(name, None)
            if way is not None:
                way.close()
        elif op == "publish":
            listener = socket.socket(fileno=fds[0])
            self._ports[name] = _Port(listener, name, int(words[2]), self.tell)
        elif op == "withdraw":
            port = self._ports.pop(name, None)
            if port is not None:
                port.close()
        elif op == "socket":
            found = self._ports.get(name)
            if found is not None:
                found.given(fds)
            else:
                for fd in fds:
                    os.close(fd)

    def _open(self, box: str, kinds: Sequence[str], network: Sequence[str], fds: list[int]) -> None:
        *rest, addresses = fds
        sockets = {kind: socket.socket(fileno=fd) for kind, fd in zip(kinds, rest, strict=True)}
        for one in sockets.values():
            one.setblocking(False)
        self._ways[box] = Way(
            Policy(network),
            sockets,
            Addresses(addresses),
            self._source,
            self._routes,
            lambda what: self._refused(box, what),
        )
        self.tell("ready", box)

    def _refused(self, box: str, what: str) -> None:
        """Tell what a box was refused, once a minute, and no more than it takes to see why."""
        told = self._told.get(box)
        if told is None:
            told = self._told[box] = set()
            self._loop.call_later(_TELL_AGAIN, self._told.pop, box, None)
        if len(told) < _MOST_TOLD and what not in told:
            told.add(what)
            self.tell("refused", box, what)

    def tell(self, *words: str) -> bool:
        """Tell the supervisor; whether it could be told."""
        try:
            wireless.tell(self._link, *words)
        except OSError:
            return False
        return True


class _Port:
    """A port of the host that leads to one of a box; the box gives a socket for each connection."""

    def __init__(
        self, listener: socket.socket, name: str, port: int, tell: Callable[..., bool]
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._name = name
        self._port = port
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._waiting: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Listen no more, and end what is open."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for link in self._waiting:
            reset(link)
        self._waiting = []
        for task in list(self._tasks):
            task.cancel()

    def _accept(self) -> None:
        link = take(self._listener, self._accept)
        if link is None:
            return
        full = len(self._tasks) + len(self._waiting) >= _MOST
        if full or not self._tell("socket", self._name):
            reset(link)
            return
        link.setblocking(False)
        self._waiting.append(link)

    def given(self, fds: list[int]) -> None:
        """Take a socket in the box's network for the connection that has waited longest."""
        inner = [socket.socket(fileno=fd) for fd in fds]
        outer = self._waiting.pop(0) if self._waiting else None
        if outer is None or len(inner) != 1:
            for one in (*inner, *([outer] if outer else [])):
                reset(one)
            return
        task = self._loop.create_task(self._carry(outer, inner[0]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, outer: socket.socket, inner: socket.socket) -> None:
        try:
            await connect_inside(inner, self._port)
        except BaseException as e:
            reset(outer)
            let_go(inner)
            if isinstance(e, OSError):  # nobody listens there
                return
            raise
        await join(outer, inner)


async def _serve(link: socket.socket) -> None:
    relay = _Relay(link)
    relay.tell("ready", "")
    await relay.over.wait()


def main(control: int) -> None:
    """Serve the supervisor on the descriptor `control` until it goes away."""
    libc.close_range(control + 1)
    _give_up_rights(RELAY_ID if sys.argv[-1] == "root" else 0)
    asyncio.run(_serve(socket.socket(fileno=control)))
    os._exit(0)
