"""The DNS messages that a box's resolver reads and writes (RFC 1035, RFC 3596).

Only what it takes: one question, addresses and aliases. All of it comes from outside, so that what
does not fit raises ValueError and nothing else.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "AAAA",
    "NAME_ERROR",
    "NOT_IMPLEMENTED",
    "NO_ERROR",
    "SERVER_FAILURE",
    "A",
    "Answer",
    "Question",
    "answer",
    "query",
    "read_answer",
    "read_question",
    "wire_name",
]

A, CNAME, AAAA = 1, 5, 28
_INTERNET = 1
NO_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED = 0, 2, 3, 4
_RESPONSE, _TRUNCATED, _RECURSION_WANTED, _RECURSION = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_MAX_MESSAGE = 512
_MAX_RECORDS = 256
_MAX_ALIASES = 16
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Question:
    """`name` is in lower case and without a dot at its end; `raw` is the section as it came."""

    number: int
    name: str
    kind: int
    raw: bytes
    recursion: bool = True


@dataclass(frozen=True)
class Answer:
    """`addresses` with the seconds that they last, aliases followed; `truncated` when there is
    more than fits."""

    code: int
    addresses: tuple[tuple[Address, int], ...]
    truncated: bool


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """Return a name, and where what follows it begins."""
    labels: list[str] = []
    end, length = 0, 0
    while True:
        if at >= len(data):
            raise ValueError("a name is cut short")
        size = data[at]
        if size >= 0xC0:
            if at + 2 > len(data):
                raise ValueError("a name is cut short")
            to = (size & 0x3F) << 8 | data[at + 1]
            end = end or at + 2
            if to >= at:
                raise ValueError("a name points forward")
            at = to  # ever smaller until labels follow; those are bounded by `length`
            length += 2
        elif size >= 0x40:
            raise ValueError("a label of an unknown kind")
        elif size == 0:
            return ".".join(labels), end or at + 1
        else:
            label = data[at + 1 : at + 1 + size]
            if len(label) != size or _LABEL.fullmatch(label) is None:
                raise ValueError("a label that no host name has")
            labels.append(label.decode("ascii").lower())
            at += 1 + size
            length += 1 + size
        if length > 255:
            raise ValueError("a name is too long")


def wire_name(name: str) -> bytes:
    """Return a name as labels. Raises ValueError."""
    made = b""
    for label in name.encode("ascii").split(b".") if name else []:
        if _LABEL.fullmatch(label) is None:
            raise ValueError("a label that no host name has")
        made += bytes([len(label)]) + label
    if len(made) > 254:
        raise ValueError("a name is too long")
    return made + b"\0"


def _read_head(data: bytes, *, response: bool) -> tuple[Question, int, tuple[int, ...]]:
    if len(data) < _HEADER.size:
        raise ValueError("a message is cut short")
    head = _HEADER.unpack_from(data)
    if bool(head[1] & _RESPONSE) is not response or head[1] & _OPCODE or head[2] != 1:
        raise ValueError("no message with one question")
    name, at = _read_name(data, _HEADER.size)
    if at + 4 > len(data):
        raise ValueError("a question is cut short")
    kind, of = struct.unpack_from("!HH", data, at)
    if of != _INTERNET:
        raise ValueError("a class other than the internet's")
    raw = data[_HEADER.size : at + 4]
    wanted = bool(head[1] & _RECURSION_WANTED)
    return Question(head[0], name, kind, raw, wanted), at + 4, head


def read_question(data: bytes) -> Question:
    """Return the question of a query. Raises ValueError."""
    return _read_head(data, response=False)[0]


def query(name: str, kind: int, number: int) -> bytes:
    """Return a query. Raises ValueError when the name cannot be one."""
    head = _HEADER.pack(number, _RECURSION_WANTED, 1, 0, 0, 0)
    return head + wire_name(name) + struct.pack("!HH", kind, _INTERNET)


def read_answer(data: bytes, asked: Question) -> Answer:
    """Return the addresses that a response to `asked` has for its name. Raises ValueError.

    Only records on the way from that name count, by aliases; others are none of its business.
    """
    question, at, head = _read_head(data, response=True)
    if (question.number, question.name, question.kind) != (asked.number, asked.name, asked.kind):
        raise ValueError("an answer to another question")
    aliases: dict[str, tuple[str, int]] = {}
    found: dict[str, list[tuple[Address, int]]] = {}
    truncated = bool(head[1] & _TRUNCATED)
    for _ in range(min(head[3], _MAX_RECORDS)):
        owner, at = _read_record_name(data, at)
        if at + _RECORD.size > len(data):
            raise ValueError("a record is cut short")
        kind, of, ttl, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        value = data[at : at + size]
        if len(value) != size:
            raise ValueError("a record is cut short")
        if of == _INTERNET and owner is not None:
            ttl = 0 if ttl >= 2**31 else ttl  # RFC 2181, section 8
            if kind == CNAME:
                aliases.setdefault(owner, (_read_name(data, at)[0], ttl))
            elif kind == asked.kind and kind in (A, AAAA):
                if size != (4 if kind == A else 16):
                    raise ValueError("an address of a wrong length")
                found.setdefault(owner, []).append((ipaddress.ip_address(value), ttl))
        at += size
    name, least = asked.name, 2**31
    for _ in range(_MAX_ALIASES):
        if name not in aliases:
            break
        name, ttl = aliases[name]
        least = min(least, ttl)
    addresses = tuple((address, min(ttl, least)) for address, ttl in found.get(name, []))
    return Answer(head[1] & 0xF, addresses, truncated)


def _read_record_name(data: bytes, at: int) -> tuple[str | None, int]:
    """As `_read_name`; None for a name that no host has, which is skipped."""
    try:
        return _read_name(data, at)
    except ValueError:
        while at < len(data):
            size = data[at]
            if size == 0:
                return None, at + 1
            if size >= 0xC0:
                return None, at + 2
            at += 1 + size
        raise


def answer(question: Question, code: int, addresses: Sequence[tuple[Address, int]] = ()) -> bytes:
    """Return a response of at most 512 bytes, with as many of the addresses as fit."""
    records = b""
    count = 0
    room = _MAX_MESSAGE - _HEADER.size - len(question.raw)
    for address, ttl in addresses:
        packed = address.packed
        kind = A if address.version == 4 else AAAA
        record = b"\xc0\x0c" + _RECORD.pack(kind, _INTERNET, ttl, len(packed)) + packed
        if len(records) + len(record) > room:
            break
        records += record
        count += 1
    flags = _RESPONSE | _RECURSION | code | (_RECURSION_WANTED if question.recursion else 0)
    return _HEADER.pack(question.number, flags, 1, count, 0, 0) + question.raw + records
