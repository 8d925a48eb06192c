"""A box's resolver: answers names that its policy allows, and admits the addresses it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tegu.sandbox.net import dns
from tegu.sandbox.net.policy import Address, Policy, Rule

__all__ = ["Resolver", "Source"]

_MOST_TTL = 3600
_MOST_AT_ONCE = 64


class Source(Protocol):
    """Where names are asked for."""

    async def ask(self, name: str, kind: int) -> bytes:
        """Return a whole response with the number 0. Raises OSError or ValueError."""


class Resolver:
    """`admit` is told an address, the rules that allow its name and its seconds, and returns
    whether it may be reached at all; `refused` is told what was not answered, and why."""

    def __init__(
        self,
        policy: Policy,
        source: Source,
        admit: Callable[[Address, Sequence[Rule], int], bool],
        refused: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._source = source
        self._admit = admit
        self._refused = refused
        self._asking = 0

    async def reply(self, message: bytes) -> bytes | None:
        """Return the response to a query; None for what is no query, or one too many."""
        try:
            question = dns.read_question(message)
        except ValueError:
            return None
        if self._asking >= _MOST_AT_ONCE:
            return None
        self._asking += 1
        try:
            return await self._answer(question)
        finally:
            self._asking -= 1

    async def _answer(self, question: dns.Question) -> bytes:
        rules = self._policy.rules_for(question.name)
        if not rules:
            self._refused(f"name {question.name or '.'}: it is not on the list")
            return dns.answer(question, dns.NAME_ERROR)
        addresses = question.kind in (dns.A, dns.AAAA)
        if not addresses and not self._policy.any_name:
            # Texts and the like would be a way to carry data past the list.
            return dns.answer(question, dns.NO_ERROR)
        try:
            data = await self._source.ask(question.name, question.kind)
            if not addresses:
                return question.number.to_bytes(2, "big") + data[2:]
            asked = dns.Question(0, question.name, question.kind, b"")
            found = dns.read_answer(data, asked)
        except (TimeoutError, OSError, ValueError):
            return dns.answer(question, dns.SERVER_FAILURE)
        if found.code not in (dns.NO_ERROR, dns.NAME_ERROR):
            return dns.answer(question, dns.SERVER_FAILURE)
        kept = []
        for address, ttl in found.addresses:
            if self._admit(address, rules, min(ttl, _MOST_TTL)):
                kept.append((address, min(ttl, _MOST_TTL)))
            else:
                self._refused(f"name {question.name}: it leads to {address}")
        return dns.answer(question, found.code, kept)
