"""One box's way out, in the relay: what it asks for, checked against its policy, and carried."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from tegu.linux.route import LOCAL, UNICAST, Routes
from tegu.linux.sklookup import ADMIT, Addresses
from tegu.sandbox.net.datagrams import Datagrams
from tegu.sandbox.net.policy import TCP, UDP, Address, Policy, Rule, mapped, special
from tegu.sandbox.net.pump import join, let_go, reset, take
from tegu.sandbox.net.resolver import Resolver, Source

__all__ = ["Way"]

_MOST = 512
"""Connections of a box at a time."""
_CONNECT = 30.0
_LEAST_TTL = 5
"""Seconds that an address is admitted at least: a program must have time to connect to it."""
_MESSAGE = 4096
_DNS_IDLE = 10.0


class Way:
    """Serves the sockets of one box's network until it is closed."""

    def __init__(
        self,
        policy: Policy,
        sockets: dict[str, socket.socket],
        addresses: Addresses,
        source: Source,
        routes: Routes,
        refused: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._sockets = sockets
        self._addresses = addresses
        self._routes = routes
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._admitted: dict[tuple[Address, int, int], float] = {}
        self._closed = False
        self._resolver = Resolver(policy, source, self.admit, refused)
        self._datagrams = Datagrams(
            sockets, lambda address, port: self._passes(address, UDP, port, log=False)
        )
        for name, one in sockets.items():
            if name in ("tcp4", "tcp6"):
                self._loop.add_reader(one, self._accept, one, self._carry)
            elif name.startswith("dnstcp"):
                self._loop.add_reader(one, self._accept, one, self._answer_stream)
            elif name.startswith("dns"):
                self._loop.add_reader(one, self._asked, one)

    def close(self) -> None:
        """End everything of the box."""
        self._closed = True
        self._datagrams.close()
        for name, one in self._sockets.items():
            if not name.startswith(("raw", "udp")):
                self._loop.remove_reader(one)
            one.close()
        for task in list(self._tasks):
            task.cancel()
        self._addresses.close()
        self._admitted = {}
        self._sockets = {}

    # What may be reached.

    def _passes(self, address: Address, protocol: int, port: int, *, log: bool = True) -> bool:
        """Whether the box may reach an address now."""
        named = self._policy.named(address, protocol, port)
        if named is None:
            end = self._admitted.get((address, protocol, port), 0.0)
            end = max(end, self._admitted.get((address, protocol, 0), 0.0))
            if self._loop.time() >= end:
                return self._say_no(address, port, "it is not on the list", log=log)
        kind = self._route(address)
        if kind == LOCAL and (named is None or named.prefixlen != address.max_prefixlen):
            return self._say_no(address, port, "it is an address of this host", log=log)
        if kind not in (UNICAST, LOCAL):
            return self._say_no(address, port, "there is no route to it", log=log)
        return True

    def _route(self, address: Address) -> int:
        """Return the type of the host's route to an address; 0 when there is none."""
        try:
            return self._routes.type_of(address)
        except OSError:
            return 0

    def _say_no(self, address: Address, port: int, why: str, *, log: bool) -> bool:
        if log:
            shown = f"[{address}]" if address.version == 6 else str(address)
            self._refused(f"{shown}:{port}: {why}")
        return False

    def admit(self, address: Address, rules: Sequence[Rule], ttl: int) -> bool:
        """Admit an address that an allowed name has, for `ttl` seconds; whether it may be."""
        policy, found = self._policy, False
        end = self._loop.time() + max(ttl, _LEAST_TTL)
        kind = self._route(address)
        if self._closed or kind == 0:
            return False
        for rule in rules:
            for protocol, port in policy.places(rule):
                named = policy.named(address, protocol, port)
                if named is not None:
                    exact = named.prefixlen == address.max_prefixlen
                    found = found or exact or kind == UNICAST
                    continue
                if special(address) or policy.denies(address, protocol, port):
                    continue
                if kind != UNICAST:
                    continue
                found = True
                self._let(address, protocol, port, end)
        return found

    def _let(self, address: Address, protocol: int, port: int, end: float) -> None:
        key = (address, protocol, port)
        before = self._admitted.get(key)
        if before is not None and before >= end:
            return
        if before is None:
            try:
                self._addresses.set(protocol, port, *mapped(ipaddress.ip_network(address)), ADMIT)
            except OSError as e:  # the map is full
                self._refused(f"{address}: {e.strerror}")
                return
            self._loop.call_at(end, self._forget, key)
        self._admitted[key] = end

    def _forget(self, key: tuple[Address, int, int]) -> None:
        """Take an address back when its time is over, if it was not answered again meanwhile."""
        end = self._admitted.get(key)
        if end is None:
            return
        if end > self._loop.time():
            self._loop.call_at(end, self._forget, key)
            return
        del self._admitted[key]
        address, protocol, port = key
        try:
            self._addresses.remove(protocol, port, *mapped(ipaddress.ip_network(address)))
        except OSError as e:  # it is refused here all the same
            self._refused(f"{address}: it stays in the kernel's table: {e.strerror}")

    # Connections.

    def _accept(
        self,
        listener: socket.socket,
        serve: Callable[[socket.socket], Coroutine[Any, Any, None]],
    ) -> None:
        link = take(listener, lambda: self._accept(listener, serve))
        if link is None:
            return
        if len(self._tasks) >= _MOST:
            reset(link)
            return
        link.setblocking(False)
        task = self._loop.create_task(serve(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, inner: socket.socket) -> None:
        """Connect in the box's place to where it meant to, and pass on what comes."""
        outer = None
        try:
            place = inner.getsockname()
            address, port = ipaddress.ip_address(place[0]), place[1]
            if not self._passes(address, TCP, port):
                reset(inner)
                return
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            outer = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            async with asyncio.timeout(_CONNECT):
                await self._loop.sock_connect(outer, (str(address), port))
            for one in (inner, outer):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as e:
            reset(inner)
            if outer is not None:
                let_go(outer)
            if isinstance(e, OSError):  # TimeoutError is one: what the box sees is a reset
                return
            raise
        await join(inner, outer)

    # Names.

    def _asked(self, one: socket.socket) -> None:
        try:
            message, sender = one.recvfrom(_MESSAGE)
        except OSError:
            return
        if len(self._tasks) < _MOST:
            task = self._loop.create_task(self._answer(one, message, sender))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, one: socket.socket, message: bytes, sender: Any) -> None:
        reply = await self._resolver.reply(message)
        if reply is not None:
            with suppress(OSError):
                one.sendto(reply, sender)

    async def _answer_stream(self, link: socket.socket) -> None:
        """Answer queries on one connection, one after the other."""
        try:
            while True:
                async with asyncio.timeout(_DNS_IDLE):
                    size = int.from_bytes(await self._exactly(link, 2), "big")
                    message = await self._exactly(link, size)
                reply = await self._resolver.reply(message)
                if reply is None:
                    return
                await self._loop.sock_sendall(link, len(reply).to_bytes(2, "big") + reply)
        except OSError:
            return
        finally:
            let_go(link)

    async def _exactly(self, link: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._loop.sock_recv(link, size - len(data))
            if not more:
                raise ConnectionResetError("it ended in the midst")
            data += more
        return data
