"""How long an address is open, by a clock of the test's own; and bytes passed on as they came."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.linux.route import BROADCAST, LOCAL, UNICAST
from tegu.sandbox.net.policy import TCP, UDP, Address, Policy, canonical
from tegu.sandbox.net.pump import join, take
from tegu.sandbox.net.way import Way

ONE = ipaddress.ip_address("203.0.113.1")


class _Clock:
    """Stands for the event loop where only time counts."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        self.calls.append((when, call, arguments))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [c for c in self.calls if c[0] <= self.now]
        self.calls = [c for c in self.calls if c[0] > self.now]
        for _, call, arguments in due:
            call(*arguments)


class _Kernel:
    """Stands for the map and the routes of the kernel."""

    def __init__(self) -> None:
        self.open: set[tuple[int, int, bytes]] = set()
        self.kinds: dict[Address, int] = {}

    def set(self, protocol: int, port: int, network: bytes, prefix: int, what: int) -> None:
        assert (prefix, what) == (128, 1)
        self.open.add((protocol, port, network))

    def remove(self, protocol: int, port: int, network: bytes, prefix: int) -> None:
        self.open.remove((protocol, port, network))

    def close(self) -> None:
        self.open = set()

    def type_of(self, address: Address) -> int:
        return self.kinds.get(address, UNICAST)


def made(entries: list[str]) -> tuple[Way, _Clock, _Kernel]:
    async def make() -> tuple[Way, _Clock, _Kernel]:
        clock, kernel = _Clock(), _Kernel()
        nothing: Any = None
        policy = Policy(canonical(entries))
        way = Way(policy, {}, kernel, nothing, kernel, lambda _: None)  # type: ignore[arg-type]
        way._loop = clock  # type: ignore[assignment]
        return way, clock, kernel

    return asyncio.run(make())


def admit(way: Way, entries: list[str], name: str, address: Address = ONE, ttl: int = 60) -> bool:
    return way.admit(address, Policy(canonical(entries)).rules_for(name), ttl)


def test_an_address_is_open_as_long_as_it_was_answered() -> None:
    entries = ["a.example:443", "b.example"]
    way, clock, kernel = made(entries)
    assert not way._passes(ONE, TCP, 443)
    assert admit(way, entries, "a.example")
    assert {(p, n) for p, n, _ in kernel.open} == {(TCP, 443), (UDP, 443)}
    assert way._passes(ONE, TCP, 443)
    assert not way._passes(ONE, TCP, 80)
    clock.advance(59)
    assert way._passes(ONE, TCP, 443)
    assert admit(way, entries, "a.example", ttl=30)  # answered anew, until 89
    clock.advance(29)
    assert way._passes(ONE, TCP, 443)
    assert kernel.open
    clock.advance(2)
    assert not way._passes(ONE, TCP, 443)
    assert not kernel.open
    assert admit(way, entries, "b.example", ttl=0)  # long enough to connect
    assert way._passes(ONE, UDP, 12345)
    assert way._passes(ONE, TCP, 443)
    clock.advance(5)
    assert not way._passes(ONE, UDP, 12345)
    assert not kernel.open


def test_where_the_host_itself_is() -> None:
    entries = ["a.example", "10.0.0.0/8", "10.0.0.1"]
    way, _, kernel = made(entries)
    for text, kind, passes in (
        ("203.0.113.1", LOCAL, False),
        ("203.0.113.1", BROADCAST, False),
        ("203.0.113.1", 0, False),
        ("203.0.113.1", UNICAST, True),
        ("10.0.0.2", LOCAL, False),
        ("10.0.0.1", LOCAL, True),
        ("10.0.0.2", UNICAST, True),
        ("192.168.0.1", UNICAST, False),
        ("169.254.169.254", UNICAST, False),
    ):
        address = ipaddress.ip_address(text)
        kernel.kinds[address] = kind
        assert admit(way, entries, "a.example", address) is passes, text
        assert way._passes(address, TCP, 80) is passes, text


@pytest.mark.parametrize("text", ["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:1.1.1.1"])
def test_ipv4_written_as_ipv6_is_admitted_by_nothing(text: str) -> None:
    """In the kernel's map it would be the IPv4 address."""
    for entries in (["a.example"], ["full"], ["a.example", "::/0"]):
        way, _, kernel = made(entries)
        assert not admit(way, entries, "a.example", ipaddress.ip_address(text))
        assert not way._passes(ipaddress.ip_address(text), TCP, 80)
        assert not kernel.open


def test_what_is_closed_admits_no_more() -> None:
    entries = ["a.example"]
    way, _, kernel = made(entries)
    way.close()
    assert not admit(way, entries, "a.example")
    assert not kernel.open


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=300_000), st.binary(max_size=300_000), st.booleans())
def test_bytes_are_passed_on(there: bytes, back: bytes, first: bool) -> None:
    """All of them, both ways, with each end where it was; also when one side ends first."""

    async def send(one: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(one, data)
        one.shutdown(socket.SHUT_WR)

    async def hear(one: socket.socket) -> bytes:
        heard = b""
        while data := await asyncio.get_running_loop().sock_recv(one, 65536):
            heard += data
        return heard

    async def work() -> None:
        (a, b), (c, d) = socket.socketpair(), socket.socketpair()
        for one in (a, b, c, d):
            one.setblocking(False)
        joined = asyncio.ensure_future(join(b, c))
        if first:
            await send(a, there)
            assert await hear(d) == there
            await send(d, back)
            assert await hear(a) == back
        else:
            done = await asyncio.gather(send(a, there), send(d, back), hear(a), hear(d))
            assert done[2:] == [back, there]
        await joined
        assert b.fileno() == c.fileno() == -1
        a.close()
        d.close()

    if first and len(there) > 100_000:
        there = there[:100_000]  # what a pair of sockets holds while nobody reads
    asyncio.run(work())


def test_giving_up_closes_both() -> None:
    async def work() -> None:
        (a, b), (c, d) = socket.socketpair(), socket.socketpair()
        for one in (b, c):
            one.setblocking(False)
        joined = asyncio.ensure_future(join(b, c))
        await asyncio.sleep(0)
        joined.cancel()
        with suppress(asyncio.CancelledError):
            await joined
        assert b.fileno() == c.fileno() == -1
        a.close()
        d.close()

    asyncio.run(work())


def test_without_descriptors_a_listener_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        taken = asyncio.Event()
        assert take(listener, taken.set) is None
        loop.add_reader(listener, taken.set)

        class Full:
            def accept(self) -> None:
                raise OSError(24, os.strerror(24))

            def fileno(self) -> int:
                return listener.fileno()

        assert take(Full(), taken.set) is None  # type: ignore[arg-type]
        with socket.create_connection(listener.getsockname()):
            assert not taken.is_set()
            await taken.wait()
        loop.remove_reader(listener)
        listener.close()

    asyncio.run(work())
