"""A connection to the supervisor that makes one box, and is answered many things at a time.

A box belongs to its connection: when this process ends, however it ends, the box does as well.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, TeguError
from tegu.sandbox import wire
from tegu.sandbox.box import RefusedError, StartError
from tegu.sandbox.launch import connect

__all__ = ["Link", "LostError", "Run"]


class LostError(SandboxError):
    """The supervisor went away before it answered."""


class Run:
    """A program that was asked for: `started` is its pid, `done` how it ended."""

    def __init__(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.started: asyncio.Future[int] = loop.create_future()
        self.done: asyncio.Future[dict[str, Any]] = loop.create_future()

    def fail(self, error: TeguError) -> None:
        """End both."""
        for future in (self.started, self.done):
            if not future.done():
                future.set_exception(error)
                future.exception()  # who waits for it hears it; if nobody does, that is no news


class Link:
    """Asks the supervisor; everything that waits for an answer fails at once when it ends."""

    def __init__(self, link: socket.socket, closed: Callable[[], None]) -> None:
        link.setblocking(False)
        self._link = link
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._n = 0
        self._waiting: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._runs: dict[int, Run] = {}
        self._queue: deque[tuple[dict[str, Any], tuple[int, ...]]] = deque()
        self._loop.add_reader(link, self._heard)

    @classmethod
    async def open(cls, path: Path | None, closed: Callable[[], None]) -> Link:
        """Connect; where no supervisor serves, one is started. Raises SandboxError."""
        return cls(await asyncio.to_thread(connect, path), closed)

    @property
    def alive(self) -> bool:
        """Whether the supervisor is there."""
        return self._link.fileno() >= 0

    async def ask(self, op: str, **fields: Any) -> Any:
        """Ask, and return the answer; raises the error it may be."""
        answer, fds = await self.ask_fd(op, **fields)
        for fd in fds:
            os.close(fd)
        return answer

    async def ask_fd(self, op: str, **fields: Any) -> tuple[Any, list[int]]:
        """As `ask`, with the descriptors that come with the answer."""
        self._n += 1
        future: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        self._waiting[self._n] = future
        self._send({"op": op, "n": self._n, **fields}, ())
        return await future

    def run(self, box: str, run: dict[str, Any], fds: Sequence[int]) -> Run:
        """Start a program with `fds` (which stay ours) as its 0, 1, 2."""
        self._n += 1
        found = self._runs[self._n] = Run(self._n)
        # Sent perhaps later, when the caller has closed its own.
        copies = tuple(os.dup(fd) for fd in fds)
        order = {"op": "run", "n": self._n, "box": box, "run": run, "announce": True}
        self._send(order, copies)
        return found

    def close(self) -> None:
        """Let go: the box ends."""
        if self.alive:
            self._loop.remove_reader(self._link)
            self._loop.remove_writer(self._link)
            self._link.close()
        while self._queue:
            _close(self._queue.popleft()[1])
        error = LostError("the box has ended, or its supervisor has")
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)
                future.exception()
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.fail(error)

    def _send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        if not self.alive:
            _close(fds)
            raise SandboxError("the supervisor has ended", hint="its boxes ended with it")
        self._queue.append((message, fds))
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._queue:
            message, fds = self._queue[0]
            try:
                wire.send(self._link, message, fds)
            except BlockingIOError:
                self._loop.add_writer(self._link, self._flush)
                return
            except OSError:
                self._lost()
                return
            except TeguError as e:  # it is too long to send
                self._answer(message["n"], {"error": wire.describe(e)}, [])
            self._queue.popleft()
            _close(fds)
        self._loop.remove_writer(self._link)

    def _heard(self) -> None:
        try:
            message, fds = wire.receive(self._link)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self._lost()
            return
        self._answer(message.get("n", 0), message, fds)

    def _lost(self) -> None:
        self.close()
        self._closed()

    def _answer(self, n: int, message: dict[str, Any], fds: list[int]) -> None:
        run = self._runs.get(n)
        if run is not None:
            self._hear_run(run, message)
        else:
            future = self._waiting.pop(n, None)
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(_error(message["error"]))
                else:
                    future.set_result((message["ok"], fds))
                return
        _close(fds)

    def _hear_run(self, run: Run, message: dict[str, Any]) -> None:
        if "error" in message:
            del self._runs[run.number]
            run.fail(_error(message["error"]))
        elif "started" in message["ok"]:
            if not run.started.done():
                run.started.set_result(message["ok"]["started"])
        else:
            del self._runs[run.number]
            if not run.started.done():
                run.started.set_result(0)
            if not run.done.done():
                run.done.set_result(message["ok"])


def _error(data: dict[str, Any]) -> TeguError:
    number = data.get("errno")
    if not isinstance(number, int):
        return wire.to_error(data)
    message = str(data.get("message"))
    if message.startswith("cannot start "):
        program, _, what = message.removeprefix("cannot start ").partition(": ")
        return StartError(program, what, number)
    return RefusedError(message, number)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
