"""A sandbox that the service holds: its box, the programs in it, its time."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tegu.errors import SandboxError, TeguError
from tegu.sandbox.net.pump import connect_inside
from tegu.sandbox.spec import BoxSpec, RunSpec
from tegu.sandbox.web.fault import Fault, as_fault, closed, gone
from tegu.sandbox.web.link import Link
from tegu.sandbox.web.program import Program
from tegu.sandbox.web.terminal import prepare

__all__ = ["MAX_PROGRAMS", "Held", "Names", "Wanted"]

MAX_PROGRAMS = 1024
"""Programs that run at a time in one sandbox by way of the service."""
_FINISHED = 32
"""Ended programs whose last output is kept for who attaches late,"""
_FINISHED_FOR = 300.0
"""and for how many seconds."""
_TERMINAL = 'exec 0<>"$0" 1>&0 2>&0; exec "$@"'
"""Opening it makes it the controlling terminal: a program in a box starts as leader of a session
that has none (tty_ioctl(4), setsid(2))."""


@dataclass(frozen=True)
class Wanted:
    """What a sandbox shall be like, beyond its box."""

    template: str
    """The template's name, as the service calls it."""
    box: BoxSpec
    timeout: float | None
    """Seconds that it lives, from its start or from when this was said anew; None without end."""
    pause: bool = False
    """Whether it is paused, not killed, when its time is over."""
    wake: bool = False
    """Whether a call on a paused one resumes it."""
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """What a box calls its users and groups, by their numbers in it, and when that was read (the
    event loop's time). `first` is the host's number of its user 0."""

    read: float
    first: int
    users: Mapping[int, str]
    groups: Mapping[int, str]


class Held:
    """One sandbox. `forget` is called once, when it has ended, with the reason."""

    def __init__(self, wanted: Wanted, forget: Callable[[Held, str], None]) -> None:
        self.id = secrets.token_hex(10)
        self.token = secrets.token_urlsafe(32)
        """What opens this sandbox alone (E2B: the envd access token),"""
        self.port_token = secrets.token_urlsafe(32)
        """and what opens only the ports in it (E2B: the traffic access token)."""
        self.wanted = wanted
        self.env = dict(wanted.env)
        self.created = time.time()
        self.end_at: float | None = None
        self.names: Names | None = None
        self.paused = False
        self.ended: str | None = None
        self.programs: dict[int, Program] = {}
        self.attachments: dict[str, Any] = {}
        """What others keep with it, such as watchers; closed with it."""
        self.samples: deque[Any] = deque(maxlen=720)
        self.log: deque[tuple[float, str]] = deque(maxlen=1000)
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._box = ""
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()

    async def start(self, open_link: Callable[[Callable[[], None]], Any]) -> None:
        """Make the box. Raises TeguError."""
        link: Link = await open_link(self._lost)
        self._link = link
        try:
            answer = await link.ask("create", box=self.wanted.box.to_json())
            self._box = answer["box"]
            self.created = time.time()
            await self._live_for(self.wanted.timeout)
        except BaseException:
            self._link = None
            link.close()
            raise
        self.note("started")
        self._later(self._watch_end())

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for a change that is carried out to its end, though its caller may go away."""
        await asyncio.shield(self._later(work))

    def note(self, what: str) -> None:
        """Put a line into its log."""
        self.log.append((time.time(), what))

    # Its end.

    async def _watch_end(self) -> None:
        reason = "its supervisor has ended"
        with suppress(TeguError):
            answer = await self.link.ask("ended", box=self._box)
            reason = self._told(answer.get("reason"))
        self._finish(reason)

    def _told(self, reason: str | None) -> str:
        if self.ended is not None:
            return self.ended
        return (reason or "it has ended").replace(f"box {self._box}", "it", 1)

    def _lost(self) -> None:
        self._finish("its supervisor has ended")

    def _finish(self, reason: str) -> None:
        if self._link is None:
            return
        self.ended = reason
        self.note(f"ended: {reason}")
        link, self._link = self._link, None
        if self._timer is not None:
            self._timer.cancel()
        for thing in list(self.attachments.values()):
            thing.close()
        self.attachments.clear()
        link.close()  # every call that waits fails now
        self._forget(self, reason)

    @property
    def link(self) -> Link:
        """Its connection; raises Fault when it has ended."""
        if self._link is None:
            raise gone(self.id, self.ended or "it has ended")
        return self._link

    def fault(self, error: TeguError | OSError) -> Fault:
        """Return what a client is told of an error: that the sandbox has ended, if it has."""
        return gone(self.id, self.ended or "") if self._link is None else as_fault(error)

    async def ask(self, op: str, **fields: Any) -> Any:
        """Ask for something in its box. Raises Fault."""
        answer, fds = await self.ask_fd(op, **fields)
        for fd in fds:
            os.close(fd)
        return answer

    async def ask_fd(self, op: str, **fields: Any) -> tuple[Any, list[int]]:
        """As `ask`, with descriptors. Raises Fault."""
        try:
            return await self.link.ask_fd(op, box=self._box, **fields)
        except TeguError as e:
            raise self.fault(e) from e

    async def verdict(self, otherwise: str) -> Fault:
        """Return why it ended, when one of its programs has been told so already."""
        for _ in range(200):
            if self._link is None:
                break
            await asyncio.sleep(0.01)
        return gone(self.id, self.ended or otherwise)

    async def kill(self, reason: str = "it was killed") -> None:
        """End it with all that is in it; returns when nothing is left."""
        if self._link is None:
            return
        self.ended = reason
        with suppress(TeguError):
            await self.link.ask("kill", box=self._box)
        self._finish(reason)

    def close(self) -> None:
        """End it without waiting."""
        self._finish("the service has ended")

    # Its time.

    async def _live_for(self, seconds: float | None) -> None:
        """The supervisor keeps the time of what is to be killed, so that it is kept in any case."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.ask("timeout", seconds=None if self.wanted.pause else seconds)
        self.end_at = None if seconds is None else time.time() + seconds
        if self.wanted.pause and seconds is not None:
            self._timer = self._loop.call_later(seconds, lambda: self._later(self._time_over()))

    async def _time_over(self) -> None:
        with suppress(TeguError):
            await self.pause()

    async def set_timeout(self, seconds: float | None, *, only_longer: bool = False) -> None:
        """Let it live for so many seconds from now. Raises Fault when it is paused."""
        await self._whole(self._set_timeout(seconds, only_longer=only_longer))

    async def _set_timeout(self, seconds: float | None, *, only_longer: bool) -> None:
        async with self._changing:
            if self.paused:
                raise Fault("failed_precondition", f"The sandbox {self.id} is paused")
            sooner = seconds is not None and (
                self.end_at is None or time.time() + seconds < self.end_at
            )
            if not (only_longer and sooner):
                await self._live_for(seconds)

    async def pause(self) -> None:
        """Stop it where it stands, until it is resumed; its time stands still. Raises Fault."""
        await self._whole(self._pause())

    async def _pause(self) -> None:
        async with self._changing:
            if self.paused:
                raise Fault("failed_precondition", f"The sandbox {self.id} is paused already")
            await self.ask("pause")
            self.paused = True
            await self._live_for(None)
            self.note("paused")

    async def resume(self, seconds: float | None) -> None:
        """Let it go on, and live for so many seconds. Raises Fault when it is not paused."""
        await self._whole(self._resume(seconds))

    async def _resume(self, seconds: float | None) -> None:
        async with self._changing:
            if not self.paused:
                raise Fault("failed_precondition", f"The sandbox {self.id} is running already")
            await self.ask("resume")
            self.paused = False
            await self._live_for(seconds)
            self.note("resumed")

    async def awake(self) -> None:
        """Resume it, if it is paused and was made to be woken. Raises Fault when it stays so."""
        _ = self.link
        if not self.paused:
            return
        if not self.wanted.wake:
            raise Fault(
                "failed_precondition",
                f"The sandbox {self.id} is paused",
                hint="resume it first (E2B: Sandbox.connect)",
            )
        try:
            await self.resume(self.wanted.timeout)
        except Fault:
            if self.paused:
                raise  # not that another call was faster

    # Its network.

    async def connect(self, port: int) -> socket.socket:
        """Return a connection to a port on the loopback of its network. Raises Fault."""
        _, fds = await self.ask_fd("socket")
        if len(fds) != 1:
            raise Fault("internal", "the box gave no socket")
        link = socket.socket(fileno=fds[0])
        try:
            await connect_inside(link, port)
        except BaseException as e:
            link.close()
            if isinstance(e, OSError):  # TimeoutError is one
                raise closed(self.id, port) from e
            raise
        return link

    # Its programs.

    async def start_program(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        timeout: float | None = None,
        tag: str | None = None,
        stdin: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Program:
        """Start a program; `size` (rows, columns) gives it a terminal. Raises Fault.

        After `timeout` seconds the supervisor kills it with all that it left.
        """
        if len(self.running()) >= MAX_PROGRAMS:
            raise Fault("resource_exhausted", f"{MAX_PROGRAMS} programs run in it already")
        variables = {**self.env, **(env or {})}
        program = Program(list(argv), dict(env or {}), cwd, tag=tag, timeout=timeout)
        try:
            words = list(argv)
            if size is not None:
                terminal, path = await self._open_terminal(*size)
                try:
                    words = ["/bin/sh", "-c", _TERMINAL, path, *words]
                    spec = RunSpec(words, variables, cwd, timeout)
                except BaseException:
                    os.close(terminal)
                    raise
                await self._begin_on_terminal(program, spec, terminal)
            else:
                spec = RunSpec(words, variables, cwd, timeout)
                await self._begin_on_pipes(program, spec, stdin=stdin)
        except TeguError as e:
            raise self.fault(e) from e
        self._adopt(program)
        return program

    def _adopt(self, program: Program) -> None:
        self.programs[program.pid] = program
        self.note(f"process {program.pid} started: {' '.join(program.argv)[:200]}")
        program.on_end = lambda: self._program_ended(program)
        if not program.running:
            self._program_ended(program)

    def _program_ended(self, program: Program) -> None:
        outcome = program.end.outcome if program.end is not None else None
        how = f"exit code {outcome['code']}" if outcome else "with the sandbox"
        self.note(f"process {program.pid} ended: {how}")
        ended = sorted(
            (p for p in self.programs.values() if not p.running), key=lambda p: p.ended_at
        )
        now = self._loop.time()
        for i, old in enumerate(ended):
            if len(ended) - i > _FINISHED or now - old.ended_at > _FINISHED_FOR:
                self.programs.pop(old.pid, None)

    def running(self) -> list[Program]:
        """Return the programs that run."""
        return [p for p in self.programs.values() if p.running]

    def program(self, pid: int) -> Program:
        """Return a program by its pid. Raises Fault."""
        found = self.programs.get(pid)
        if found is None:
            raise Fault("not_found", f"there is no process {pid}")
        return found

    async def _open_terminal(self, rows: int, columns: int) -> tuple[int, str]:
        """Make a terminal of the box's own; returns our end, and the path of its."""
        _, fds = await self.ask_fd("open", path="/dev/ptmx", flags=os.O_RDWR)
        for extra in fds[1:]:
            os.close(extra)
        if not fds:
            raise SandboxError("/dev/ptmx: the box gave no descriptor")
        try:
            return fds[0], prepare(fds[0], rows, columns)
        except BaseException:
            os.close(fds[0])
            raise

    async def _begin_on_terminal(self, program: Program, spec: RunSpec, terminal: int) -> None:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            run = self.link.run(self._box, spec.to_json(), (null, null, null))
        except BaseException:
            os.close(terminal)
            raise
        finally:
            os.close(null)
        await program.begin(self.link, run, streams={terminal: "terminal"}, terminal=terminal)

    async def _begin_on_pipes(self, program: Program, spec: RunSpec, *, stdin: bool) -> None:
        in_r, in_w = os.pipe2(os.O_CLOEXEC)
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        try:
            run = self.link.run(self._box, spec.to_json(), (in_r, out_w, err_w))
        except BaseException:
            for fd in (in_w, out_r, err_r):
                os.close(fd)
            raise
        finally:
            for fd in (in_r, out_w, err_w):
                os.close(fd)
        if not stdin:
            os.close(in_w)
            in_w = -1
        streams = {out_r: "stdout", err_r: "stderr"}
        await program.begin(self.link, run, streams=streams, stdin=in_w)
