"""A program that runs in a box, as those hear it who are attached: none, one or many.

Its output is read from its pipes (or its terminal) here. While nobody is attached the last of it is
kept, and given to who comes next, so that a broken connection loses nothing. While somebody is who
does not keep up, nothing more is read, and the program waits, as it would for a slow terminal.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import termios
from collections import deque
from contextlib import suppress
from typing import Any

from tegu.errors import TeguError
from tegu.sandbox.web.fault import Fault, as_fault
from tegu.sandbox.web.link import Link, Run
from tegu.sandbox.web.listener import End, Listener
from tegu.sandbox.web.terminal import set_size

__all__ = ["BACKLOG", "End", "Listener", "Program", "signal_number"]

_CHUNK = 65536
BACKLOG = 2**20
"""Bytes of output that are kept while nobody is attached."""


class Program:
    """A program: started already, or about to be (`begin`)."""

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        cwd: str,
        *,
        tag: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self.argv, self.env, self.cwd, self.tag, self.timeout = argv, env, cwd, tag, timeout
        self.pid = 0
        """Its process id in the box."""
        self.end: End | None = None
        self.ended_at = 0.0
        self.lost = 0
        """Bytes of output that were dropped as nobody was attached."""
        self.on_end: Any = lambda: None
        self._listeners: list[Listener] = []
        self._backlog: deque[tuple[str, bytes]] = deque()
        self._backlog_size = 0
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, str] = {}
        self._reading = False
        self._stdin = -1
        self._terminal = -1
        self._typing = asyncio.Lock()
        self._link: Link | None = None
        self._run: Run | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.end is None

    @property
    def has_terminal(self) -> bool:
        """Whether its streams are a terminal."""
        return self._terminal >= 0

    async def begin(
        self, link: Link, run: Run, *, streams: dict[int, str], stdin: int = -1, terminal: int = -1
    ) -> None:
        """Take over the descriptors of a run that was asked for, and wait until it has started.

        Raises Fault when it cannot.
        """
        self._link, self._run = link, run
        self._streams, self._stdin, self._terminal = streams, stdin, terminal
        for fd in (*streams, stdin):
            if fd >= 0:
                os.set_blocking(fd, False)
        try:
            self.pid = await run.started
        except BaseException as e:
            self._let_go()
            if not run.done.done():
                self._signal_later(None)
            if isinstance(e, TeguError):
                raise as_fault(e) from e
            raise
        self._read_on()
        run.done.add_done_callback(self._ended)

    @property
    def timed_out(self) -> bool:
        """Whether its own timeout ended it; that of the sandbox is the sandbox's end."""
        outcome = self.end.outcome if self.end is not None else None
        if outcome is None or self.timeout is None or not outcome["timed_out"]:
            return False
        return bool(outcome["seconds"] >= self.timeout * 0.999)

    # Those who are attached.

    def listen(self) -> Listener:
        """Attach: output from now on, after what nobody has heard yet."""
        listener = Listener(self)
        while self._backlog:
            listener.put(*self._backlog.popleft())
        self._backlog_size = 0
        self._listeners.append(listener)
        return listener

    def leave(self, listener: Listener, unheard: deque[tuple[str, bytes]]) -> None:
        """A listener goes."""
        if listener not in self._listeners:
            return
        self._listeners.remove(listener)
        if not self._listeners:
            for item in unheard:
                self._keep(*item)
        self.heard()

    def heard(self) -> None:
        """A listener has taken something: perhaps there is room for more."""
        if not self._reading and self._streams and not any(x.full for x in self._listeners):
            self._read_on()

    def _keep(self, stream: str, data: bytes) -> None:
        self._backlog.append((stream, data))
        self._backlog_size += len(data)
        while self._backlog_size > BACKLOG:
            _, dropped = self._backlog.popleft()
            self._backlog_size -= len(dropped)
            self.lost += len(dropped)

    # Output.

    def _read_on(self) -> None:
        self._reading = True
        for fd in self._streams:
            self._loop.add_reader(fd, self._readable, fd)

    def _hold(self) -> None:
        self._reading = False
        for fd in self._streams:
            self._loop.remove_reader(fd)

    def _readable(self, fd: int) -> None:
        self._take(fd)
        if self._reading and any(x.full for x in self._listeners):
            self._hold()

    def _take(self, fd: int) -> bool:
        """Read once; returns whether there may be more."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # a terminal that nobody has open any more: EIO
        if not data:
            self._loop.remove_reader(fd)
            del self._streams[fd]
            if fd != self._terminal:
                os.close(fd)
            return False
        stream = self._streams[fd]
        if self._listeners:
            for listener in self._listeners:
                listener.put(stream, data)
        else:
            self._keep(stream, data)
        return True

    def _take_rest(self, fd: int) -> None:
        """Read what is there now, and not what others write meanwhile: that may never end."""
        try:
            count = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        except OSError:
            return
        for _ in range(-(-count // _CHUNK)):
            if not self._take(fd):
                return
        if fd == self._terminal:
            while self._take(fd):  # FIONREAD counts what is in one of its buffers
                pass

    def _ended(self, done: asyncio.Future[dict[str, Any]]) -> None:
        for fd in list(self._streams):
            self._take_rest(fd)
        self._let_go()
        error = done.exception()
        if error is None:
            self.end = End(done.result(), None)
        else:
            self.end = End(None, as_fault(error) if isinstance(error, TeguError) else None)
        self.ended_at = self._loop.time()
        for listener in self._listeners:
            listener.wake()
        self.on_end()

    def _let_go(self) -> None:
        self._hold()
        for fd in {*self._streams, self._stdin, self._terminal}:
            if fd >= 0:
                self._loop.remove_writer(fd)
                with suppress(OSError):
                    os.close(fd)
        self._streams = {}
        self._stdin = self._terminal = -1

    # Input, signals, size.

    async def write(self, data: bytes) -> None:
        """Send to its stdin or terminal; returns when it was taken. Raises Fault."""
        async with self._typing:
            rest = memoryview(data)
            while rest:
                fd = self._input()
                try:
                    rest = rest[os.write(fd, rest[:_CHUNK]) :]
                except BlockingIOError:
                    await self._writable(fd)
                except OSError as e:
                    self.close_stdin()
                    raise Fault(
                        "failed_precondition", f"process {self.pid} reads no input any more"
                    ) from e

    def _input(self) -> int:
        if not self.running:
            raise Fault("not_found", f"process {self.pid} has ended")
        fd = self._terminal if self._terminal >= 0 else self._stdin
        if fd < 0:
            raise Fault(
                "failed_precondition",
                f"process {self.pid} has no stdin",
                hint="it was started without, or it was closed",
            )
        return fd

    async def _writable(self, fd: int) -> None:
        ready = asyncio.Event()
        listener = self._run.done if self._run is not None else None
        self._loop.add_writer(fd, ready.set)
        try:
            if listener is not None:
                listener.add_done_callback(lambda _: ready.set())
            await ready.wait()
        finally:
            if fd in (self._stdin, self._terminal):
                self._loop.remove_writer(fd)

    async def end_input(self) -> None:
        """End its stdin, after what was sent; a terminal gets the character that says so."""
        if self._terminal >= 0:
            await self.write(b"\x04")
            return
        async with self._typing:
            self._input()
            self.close_stdin()

    def close_stdin(self) -> None:
        """Close its stdin, if it is a pipe."""
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    async def signal(self, number: int | None) -> None:
        """Send it a signal; None kills it with all that it left. Raises Fault."""
        if not self.running or self._link is None or self._run is None:
            raise Fault("not_found", f"process {self.pid} has ended")
        if not await self._link.ask("signal", run=self._run.number, signal=number):
            raise Fault("not_found", f"process {self.pid} has ended")

    def _signal_later(self, number: int | None) -> None:
        async def tell() -> None:
            with suppress(TeguError):
                if self._link is not None and self._run is not None:
                    await self._link.ask("signal", run=self._run.number, signal=number)

        self._cleanup = self._loop.create_task(tell())

    def resize(self, rows: int, columns: int) -> None:
        """Change its terminal's size (ioctl_tty(2)). Raises Fault when it has none."""
        if self._terminal < 0:
            raise Fault("failed_precondition", f"process {self.pid} has no terminal")
        set_size(self._terminal, rows, columns)


def signal_number(name: str | int) -> int | None:
    """Return a signal's number; None for KILL, which ends a program with all that it left.

    Raises Fault.
    """
    if isinstance(name, int):
        number = name
    else:
        known = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
        if known not in signal.Signals.__members__:
            raise Fault("invalid_argument", f"signal: {name[:40]!r} is no signal")
        number = signal.Signals[known].value
    if not 0 < number < 65:
        raise Fault("invalid_argument", f"signal: {number} is no signal")
    return None if number == signal.SIGKILL else number
