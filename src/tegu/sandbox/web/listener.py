"""One who is attached to a program, and what is to be heard: output, and its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tegu.sandbox.web.fault import Fault

if TYPE_CHECKING:
    from tegu.sandbox.web.program import Program

__all__ = ["End", "Listener"]

_HIGH = 2**20
"""Bytes that wait for a client before nothing more is read."""


@dataclass(frozen=True)
class End:
    """How a program ended: `outcome` as the supervisor told it, or the error that ended it."""

    outcome: dict[str, Any] | None
    error: Fault | None


class Listener:
    """One who is attached to a program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._queue: deque[tuple[str, bytes]] = deque()
        self._size = 0
        self._more = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether it should be waited for."""
        return self._size > _HIGH

    def put(self, stream: str, data: bytes) -> None:
        """Queue output for it."""
        self._queue.append((stream, data))
        self._size += len(data)
        self._more.set()

    def wake(self) -> None:
        """Let it see that the program has ended."""
        self._more.set()

    async def next(self) -> tuple[str, bytes] | End:
        """Wait for output, or for the end once all output was heard."""
        while not self._queue:
            if self._program.end is not None:
                return self._program.end
            self._more.clear()
            await self._more.wait()
        stream, data = self._queue.popleft()
        self._size -= len(data)
        self._program.heard()
        return stream, data

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield output until the program ends."""
        while not isinstance(item := await self.next(), End):
            yield item

    def close(self) -> None:
        """Go: what it has not heard is kept for the next."""
        self._program.leave(self, self._queue)
