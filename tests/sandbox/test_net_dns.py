"""What the resolver of boxes reads from outside, and what it answers."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.sandbox.net import dns
from tegu.sandbox.net.datagrams import packet
from tegu.sandbox.net.policy import Address, Policy, Rule, canonical
from tegu.sandbox.net.resolver import Resolver
from tegu.sandbox.net.upstream import read_servers

ONE, TWO = ipaddress.ip_address("203.0.113.1"), ipaddress.ip_address("203.0.113.2")


def response(
    name: str, records: list[tuple[str, int, int, bytes]], *, code: int = 0, kind: int = dns.A
) -> bytes:
    """Return a response to the question number 7."""
    data = struct.pack("!6H", 7, 0x8180 | code, 1, len(records), 0, 0)
    data += dns.wire_name(name) + struct.pack("!HH", kind, 1)
    for owner, record, ttl, value in records:
        data += dns.wire_name(owner) + struct.pack("!HHIH", record, 1, ttl, len(value)) + value
    return data


ASKED = dns.Question(7, "a.example", dns.A, b"")


def test_a_question_and_its_answer() -> None:
    question = dns.read_question(dns.query("A.Example", dns.A, 7))
    assert (question.name, question.kind, question.number) == ("a.example", dns.A, 7)
    made = dns.answer(question, 0, [(ONE, 60), (TWO, 5)])
    found = dns.read_answer(made, question)
    assert found == dns.Answer(0, ((ONE, 60), (TWO, 5)), truncated=False)
    assert len(dns.answer(question, 0, [(ONE, 60)] * 100)) <= 512


def test_aliases_are_followed_and_strangers_left_out() -> None:
    data = response(
        "a.example",
        [
            ("evil.example", dns.A, 60, TWO.packed),
            ("b.example", dns.A, 300, ONE.packed),
            ("a.example", 5, 20, dns.wire_name("b.example")),
        ],
    )
    assert dns.read_answer(data, ASKED).addresses == ((ONE, 20),)


def test_aliases_in_a_circle_end() -> None:
    circle = [
        ("a.example", 5, 20, dns.wire_name("b.example")),
        ("b.example", 5, 20, dns.wire_name("a.example")),
    ]
    assert dns.read_answer(response("a.example", circle), ASKED).addresses == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 12,
        dns.query("a.example", dns.A, 7),
        response("b.example", []),
        response("a.example", [], kind=dns.AAAA),
        response("a.example", [("a.example", dns.A, 60, b"abc")]),
        response("a.example", [("a.example", dns.A, 60, ONE.packed)])[:-1],
        struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + b"\1a\xc0\x0c\0\1\0\1",
        struct.pack("!6H", 7, 0x8180, 1, 0, 0, 0) + b"\x80a\0\0\1\0\1",
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        dns.read_answer(data, ASKED)


@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (dns.read_question, lambda d: dns.read_answer(d, ASKED)):
        try:
            read(data)
        except ValueError:
            continue


@given(st.binary(max_size=200), st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_damaged_answers(tail: bytes, at: int, what: bytes) -> None:
    data = response(
        "a.example",
        [("a.example", 5, 20, dns.wire_name("b.example")), ("b.example", 1, 5, ONE.packed)],
    )
    broken = data[:at] + what + data[at + len(what) :] + tail
    try:
        found = dns.read_answer(broken, ASKED)
    except ValueError:
        return
    assert len(found.addresses) <= 256


def test_resolv_conf() -> None:
    text = "# x\nnameserver 10.0.0.1\nsearch a\nnameserver x\nnameserver ::1 # y\nnameserver"
    assert read_servers(text) == ["10.0.0.1", "::1"]
    assert read_servers("") == ["127.0.0.1"]


class _Source:
    def __init__(self, data: bytes | None) -> None:
        self.data = data
        self.asked: list[str] = []

    async def ask(self, name: str, kind: int) -> bytes:
        self.asked.append(name)
        if self.data is None:
            raise OSError("no resolver answers")
        return bytes(2) + self.data[2:]


def ask(entries: Sequence[str], source: _Source, name: str, kind: int = dns.A) -> dns.Answer:
    """Ask a resolver that admits everything but TWO."""

    def admit(address: Address, rules: Sequence[Rule], ttl: int) -> bool:
        return address != TWO

    resolver = Resolver(Policy(canonical(list(entries))), source, admit, lambda _: None)
    reply = asyncio.run(resolver.reply(dns.query(name, kind, 9)))
    assert reply is not None
    return dns.read_answer(reply, dns.Question(9, name, kind, b""))


def test_the_resolver_answers_allowed_names_only() -> None:
    both = [("a.example", 1, 9999999, ONE.packed), ("a.example", 1, 5, TWO.packed)]
    source = _Source(response("a.example", both))
    assert ask(["a.example"], source, "a.example").addresses == ((ONE, 3600),)
    assert ask(["a.example"], source, "b.example").code == dns.NAME_ERROR
    assert ask(["10.0.0.0/8"], source, "a.example").code == dns.NAME_ERROR
    assert source.asked == ["a.example"]
    # Nothing but addresses: texts would carry data.
    assert ask(["a.example"], source, "a.example", 16) == dns.Answer(0, (), truncated=False)
    assert source.asked == ["a.example"]
    assert ask(["full"], _Source(None), "a.example").code == dns.SERVER_FAILURE
    lying = _Source(response("b.example", []))
    assert ask(["full"], lying, "a.example").code == dns.SERVER_FAILURE


def test_what_is_no_query_gets_no_answer() -> None:
    resolver = Resolver(Policy("full"), _Source(None), lambda *_: True, lambda _: None)
    for data in (b"", b"x" * 40, response("a.example", [])):
        assert asyncio.run(resolver.reply(data)) is None


def test_packets_are_what_the_rfcs_say() -> None:
    made = packet((ONE, 53), (TWO, 4000), b"abc")
    assert made[:1] == b"\x45"
    assert int.from_bytes(made[2:4], "big") == len(made) == 31
    assert made[20:26] == struct.pack("!HHH", 53, 4000, 11)
    assert _check(ONE.packed + TWO.packed + struct.pack("!BBH", 0, 17, 11) + made[20:] + b"\0")
    six = ipaddress.ip_address("2001:db8::1")
    made = packet((six, 53), (six, 4000), b"abcd")
    assert made[:8] == bytes.fromhex("60000000000c1140")
    assert _check(six.packed * 2 + struct.pack("!II", 12, 17) + made[40:])


def _check(data: bytes) -> bool:
    """Whether all words of a packet add up as the internet checksum wants (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF
