"""One box as the supervisor sees it: a process, a socket to it, and what runs there."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from tegu.errors import SandboxError, UsageError
from tegu.linux.cgroups import Group
from tegu.sandbox.spec import BoxSpec, RunSpec
from tegu.sandbox.wireless import receive, tell

__all__ = ["Box", "Outcome", "Pending", "RefusedError", "StartError"]

_GRACE = 5.0
"""Seconds that a box's first process has to carry a kill out before the whole box is killed."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `code` as exit code, or 128 + the signal's number, with `signal`."""

    code: int
    signal: int = 0
    timed_out: bool = False
    out_of_memory: bool = False
    seconds: float = 0.0
    user: float = 0.0
    system: float = 0.0
    max_rss: int = 0
    """Bytes: the largest resident set of one of its processes."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass
class Pending:
    """Something asked of a box: `done` is called once, with the answer or an error."""

    done: Callable[[Outcome | list[int] | SandboxError], None]
    begun: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None
    timed_out: bool = False
    kill: Callable[[], None] | None = None
    """What the timer does in the end,"""
    left: float = 0.0
    """and in how many seconds of running, while the box is paused."""
    program: str = ""
    """What was to be started, for the message when it cannot."""
    started: Callable[[int], None] | None = None
    """Called with the program's pid in the box, once it runs in a box that lives on."""

    def finish(self, answer: Outcome | list[int] | SandboxError) -> None:
        """Answer, and let the timer go."""
        if self.timer is not None:
            self.timer.cancel()
        self.done(answer)


class Box:
    """States: "new" (cloned or about to be), "busy" (a program took its first process over),
    "live" (its first process takes orders), "dead"."""

    def __init__(self, name: str, spec: BoxSpec, ended: Callable[[Box], None]) -> None:
        self.name = name
        self.spec = spec
        self.state = "new"
        self.created = time.time()
        self.group: Group | None = None
        self.gate: Callable[[Callable[[SandboxError | None], None]], None] | None = None
        """What must be done to the new process before a program may run there; calls when it is, or
        with an error. Until then the process is not waited for, so that its pid stays its own."""
        self.ready = False
        """Whether a program may run in it."""
        self.owner: object = None
        self.paused = False
        self.pid = 0
        self.error: SandboxError | None = None
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._doomed = False
        self._gated = self._ended_early = False
        self._once = False
        self._link, self.other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        self._program: Pending | None = None
        self._pending: dict[int, Pending] = {}
        self._number = 0
        self._life: asyncio.TimerHandle | None = None
        self._when_born: list[Callable[[], None]] = []
        self._when_dead: list[Callable[[], None]] = []
        if spec.timeout is not None:
            self._life = self._loop.call_later(spec.timeout, self._expire)

    # What the zygote says.

    def born(self, pid: int, pidfd: int, reason: str) -> None:
        """Take the process over."""
        self.other_end.close()
        self.pid, self._pidfd = pid, pidfd
        self._loop.add_reader(pidfd, self._process_ended)
        if reason:
            self.error = SandboxError(f"box {self.name}: {reason}")
        if self._doomed:
            self._signal(signal.SIGKILL)
        if self.gate is None:
            self._open_gate()
        else:
            self._gated = True
            self.gate(self._passed)

    def _passed(self, error: SandboxError | None) -> None:
        self._gated = False
        if error is not None:
            self.error = self.error or error
            self.kill()
        if self._ended_early:
            self._process_ended()
        elif error is None:
            self._open_gate()

    def _open_gate(self) -> None:
        self.ready = True
        waiting, self._when_born = self._when_born, []
        for call in waiting:
            call()

    def stillborn(self, reason: str) -> None:
        """No process came of it."""
        self.other_end.close()
        self.error = SandboxError(f"box {self.name}: {reason}")
        self._finish(None, 0)

    def when_born(self, call: Callable[[], None]) -> None:
        """Call once a program may run (or never will: see `state`)."""
        if self.ready or self.state == "dead":
            call()
        else:
            self._when_born.append(call)

    def when_dead(self, call: Callable[[], None]) -> None:
        """Call once nothing is left of the box."""
        if self.state == "dead":
            call()
        else:
            self._when_dead.append(call)

    # What clients ask.

    def become(self, run: RunSpec, fds: list[int], pending: Pending) -> None:
        """Let the program take the box's first process over: the box ends when it does."""
        self.state = "busy"
        self._program = pending
        pending.program = run.argv[0]
        self._arm(pending, run.timeout, self.kill)
        self._order(fds, "become", "0", *_words(run, self.spec))

    def once(self, run: RunSpec, fds: list[int], pending: Pending) -> None:
        """Run one program under the box's first process, and end the box when it has ended.

        The answer does not wait for the box to be taken apart, which takes longer than the start.
        """
        self.state = "live"
        self._loop.add_reader(self._link.fileno(), self._heard_one)
        self._once = True
        pending.program = run.argv[0]
        self._arm(pending, run.timeout, self.kill)
        self._ask("once", pending, _words(run, self.spec), fds)

    def settle(self, pending: Pending) -> None:
        """Make it a box that lives on; `pending` hears when it takes orders."""
        self.state = "live"
        self._loop.add_reader(self._link.fileno(), self._heard_one)
        self._ask("init", pending)

    def run(self, run: RunSpec, fds: list[int], pending: Pending) -> int:
        """Start a program in a living box; returns the number by which it can be killed."""
        pending.program = run.argv[0]
        number = self._ask("run", pending, _words(run, self.spec), fds)
        self._arm(pending, run.timeout, lambda: self.kill_run(number))
        return number

    def kill_run(self, number: int, what: int = signal.SIGKILL, *, everything: bool = True) -> None:
        """Send a signal to a run, or end it with all that it left."""
        if self.state != "live" or number not in self._pending:
            return
        self._order([], "kill", str(number), str(int(what)), str(int(everything)))
        if everything:
            self._loop.call_later(_GRACE, self._insist, number)

    def _insist(self, number: int) -> None:
        if number in self._pending:
            self.kill()  # its first process does not do as it is told

    def open(self, path: str, flags: int, pending: Pending) -> None:
        """Open a file as the box sees it; the answer is a descriptor."""
        self._ask("open", pending, (path, str(flags)))

    def socket(self, pending: Pending) -> None:
        """Make a TCP socket in the box's network; the answer is its descriptor."""
        self._ask("socket", pending)

    def change(self, op: str, pending: Pending, *arguments: str) -> None:
        """mkdir or remove a path, rename one; pause or resume all programs."""
        self._ask(op, pending, arguments)

    def kill(self) -> None:
        """Kill everything in the box, at once."""
        self._doomed = True
        if self.pid:
            self._signal(signal.SIGKILL)

    def set_paused(self, paused: bool) -> None:
        """Note that its programs stand still, or go on; so does the time of their timeouts."""
        if paused == self.paused:
            return
        self.paused = paused
        for pending in self._all():
            if paused and pending.timer is not None:
                pending.left = max(0.0, pending.timer.when() - self._loop.time())
                pending.timer.cancel()
            elif pending.timer is not None and pending.kill is not None:
                self._arm(pending, pending.left, pending.kill)

    def live_for(self, seconds: float | None) -> None:
        """End it in `seconds` from now, whatever was said before; None lets it live on."""
        if self._life is not None:
            self._life.cancel()
        self._life = None if seconds is None else self._loop.call_later(seconds, self._expire)
        self.spec = replace(self.spec, timeout=seconds)

    # Inside.

    def _expire(self) -> None:
        self.error = SandboxError(f"box {self.name} reached its timeout of {self.spec.timeout:g} s")
        for pending in self._all():
            pending.timed_out = True
        self.kill()

    def _all(self) -> list[Pending]:
        return [*self._pending.values(), *([self._program] if self._program else [])]

    def _arm(self, pending: Pending, timeout: float | None, kill: Callable[[], None]) -> None:
        if timeout is None:
            return

        def expire() -> None:
            pending.timed_out = True
            kill()

        pending.kill = kill
        pending.timer = self._loop.call_later(timeout, expire)

    def _ask(
        self, op: str, pending: Pending, rest: Sequence[str] = (), fds: Sequence[int] = ()
    ) -> int:
        self._number += 1
        number = self._number
        self._pending[number] = pending
        try:
            self._order(fds, op, str(number), *rest)
        except SandboxError:
            del self._pending[number]
            raise
        return number

    def _order(self, fds: Sequence[int], *words: str) -> None:
        if self.state == "dead":
            raise self.error or SandboxError(f"box {self.name} has ended")
        try:
            tell(self._link, *words, fds=fds)
        except BlockingIOError as e:
            raise SandboxError(f"box {self.name} does not take orders: too many wait") from e
        except OSError as e:
            raise self.error or SandboxError(f"box {self.name} has ended") from e

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _heard(self) -> None:
        while self._heard_one():
            pass

    def _heard_one(self) -> bool:
        """Take one message; returns whether there may be more."""
        if self._link.fileno() < 0:
            return False
        try:
            data, fds = _last_words(self._link)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        if not data:
            self._loop.remove_reader(self._link.fileno())
            self.kill()  # its first process let go of us: so do we of the box
            return False
        self._take(data.decode(errors="replace").split("\0"), fds)
        return True

    def _take(self, words: list[str], fds: list[int]) -> None:
        """Hear what a box says. It may lie: about itself only, and in a fixed form."""
        kept = False
        try:
            if words[0] == "ready":
                self._answer(1, [])
            elif words[0] == "error":
                self.error = self._start_error(words)
            elif words[0] == "started":
                begun = self._pending.get(int(words[1]))
                if begun is not None and begun.started is not None:
                    begun.started(int(words[2]))
            elif words[0] == "exited":
                number, status = int(words[1]), int(words[2])
                user, system, rss = float(words[3]), float(words[4]), int(words[5])
                pending = self._pending.pop(number, None)
                if pending is not None and not (pending.timed_out and self._once):
                    starved = self._starved() or words[6:7] == ["oom"]  # a guest's own memory
                    pending.finish(_outcome(pending, status, user, system, rss, starved))
                    if self._once:
                        self._loop.remove_reader(
                            self._link.fileno()
                        )  # there is nothing more to hear
                        self.kill()
            elif words[0] == "done":
                kept = self._answer(int(words[1]), fds)
            elif words[0] == "failed":
                number, what = int(words[1]), words[3]
                pending = self._pending.pop(number, None)
                if pending is not None and pending.program:
                    pending.finish(StartError(pending.program, what, int(words[2])))
                    if self._once:
                        self.kill()
                elif pending is not None:
                    pending.finish(RefusedError(what, int(words[2])))
        except (IndexError, ValueError, OverflowError):
            self.error = SandboxError(f"box {self.name} talks nonsense: it was killed")
            self.kill()
        finally:
            if not kept:
                for fd in fds:
                    os.close(fd)

    def _answer(self, number: int, fds: list[int]) -> bool:
        pending = self._pending.pop(number, None)
        if pending is None:
            return False
        pending.finish(fds)
        return True

    def _start_error(self, words: list[str]) -> SandboxError:
        what = words[3] if len(words) > 3 else "it did not say why"
        step = words[1] if len(words) > 1 else "starting"
        if step == "taking orders" and self._program is not None:
            number = words[2] if words[2].isdigit() else "0"
            return StartError(self._program.program, what, int(number))
        return SandboxError(f"box {self.name}: {step}: {what}")

    def _starved(self) -> bool:
        return self.group is not None and self.group.out_of_memory()

    def join(self, group: Group) -> None:
        """Take a group that its process was put into; what is dead already lets it go again."""
        if self.group is None:
            self.group = group
        else:
            self.group.directories.update(group.directories)
        if self.state == "dead":
            self._drop_group()

    def _drop_group(self) -> None:
        if self.group is not None:
            self._let_go(self.group)
            self.group = None

    def _let_go(self, group: Group, attempt: int = 0) -> None:
        """Remove a group without waiting for what was killed; the supervisor's end has the rest."""
        if not group.remove() and attempt < 20:
            self._loop.call_later(0.001 * 2 ** min(attempt, 10), self._let_go, group, attempt + 1)

    def _process_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._gated:
            self._ended_early = True
            return
        pid, status, usage = os.wait4(self.pid, 0)
        assert pid == self.pid
        if self.state == "live":
            self._heard()  # its last words
        elif self.error is None:
            with suppress(OSError):
                data, fds = _last_words(self._link)
                for fd in fds:
                    os.close(fd)
                words = data.decode(errors="replace").split("\0")
                if words[0] == "error":
                    self.error = self._start_error(words)
        self._finish(usage, status)

    def _finish(self, usage: Any, status: int) -> None:
        if self._life is not None:
            self._life.cancel()
        if self.state == "live":
            self._loop.remove_reader(self._link.fileno())
        self._link.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        starved = self._starved()
        if starved and self.error is None:
            self.error = SandboxError(f"box {self.name} has ended: it reached its memory limit")
        self.state = "dead"
        program, self._program = self._program, None
        if program is not None:
            if self.error is not None and not program.timed_out and not starved:
                program.finish(self.error)
            elif usage is not None:
                rss = usage.ru_maxrss
                program.finish(
                    _outcome(program, status, usage.ru_utime, usage.ru_stime, rss, starved)
                )
        waiting, self._pending = self._pending, {}
        for pending in waiting.values():
            # A version 2 group that starves is killed whole, its first process too.
            if pending.timed_out or (starved and pending.program):
                # What the box's processes used is known only where the box was the program's own.
                times = (0.0, 0.0, 0)
                if self._once and usage is not None:
                    times = (usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
                pending.finish(_outcome(pending, signal.SIGKILL, *times, starved))
            else:
                pending.finish(self.error or SandboxError(f"box {self.name} has ended"))
        self._drop_group()
        self._ended(self)
        self._open_gate()  # who waited for it sees that it is dead
        dead, self._when_dead = self._when_dead, []
        for call in dead:
            call()


def _last_words(link: socket.socket) -> tuple[bytes, list[int]]:
    """Receive from a box that ended; an order it left unread is an error of its own, told first."""
    try:
        return receive(link)
    except ConnectionResetError:
        return receive(link)


def _words(run: RunSpec, box: BoxSpec) -> list[str]:
    """Return an order's fields: directory, how many words argv has and, after a space, the user
    unless it is root, argv, NAME=VALUE."""
    whole = run.within(box)
    env = [f"{name}={value}" for name, value in whole.env.items()]
    if whole.user and box.kind == "process":
        raise UsageError("user: a program of the class process runs as its box's own user id")
    count = f"{len(run.argv)} {whole.user}" if whole.user else str(len(run.argv))
    return [whole.cwd, count, *run.argv, *env]


class RefusedError(SandboxError):
    """The kernel refused what was asked of the box; `number` is the errno."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
        self.number = number


class StartError(SandboxError):
    """The program could not be started; `number` is the errno."""

    def __init__(self, program: str, what: str, number: int) -> None:
        # The box may name a file of its own (the interpreter of a script): that helps.
        super().__init__(f"cannot start {program}: {what}")
        self.number = number


def _outcome(
    pending: Pending, status: int, user: float, system: float, rss: int, starved: bool
) -> Outcome:
    code = os.waitstatus_to_exitcode(status)
    return Outcome(
        code=code if code >= 0 else 128 - code,
        signal=-code if code < 0 else 0,
        timed_out=pending.timed_out,
        out_of_memory=starved and code == -signal.SIGKILL,
        seconds=round(time.monotonic() - pending.begun, 6),
        user=round(user, 6),
        system=round(system, 6),
        max_rss=rss * 1024,
    )
