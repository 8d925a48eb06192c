"""A fork of a function's zygote: the sandbox of an invocation, or of a tenant's, one at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError
from tegu.linux.cgroups import Group
from tegu.sandbox.fn.home import Home
from tegu.sandbox.fn.invoked import Invoked, Value, call_words
from tegu.sandbox.fn.records import MOST_LOG, OUTCOMES
from tegu.sandbox.wireless import receive

__all__ = ["Fork"]

_GRACE = 5.0
"""Seconds after a kill until the whole zygote is taken for lost."""
_DRAIN = 2**20
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_UNBELIEVABLE = ("timed_out", "out_of_memory", "queue_full", "cancelled", "crashed")
"""Outcomes that only the supervisor can tell."""


class Fork:
    """Asked for at once; `gate` puts it under its limits before it is called.

    `free` is called when it has answered (and is `doomed`, or would take another call), `gone` when
    nothing is left.
    """

    def __init__(
        self,
        home: Home,
        number: str,
        slot: int,
        *,
        lasting: bool,
        gate: Callable[[int], asyncio.Future[Group]] | None,
        free: Callable[[Fork], None],
        gone: Callable[[Fork], None],
        printed: Callable[[str, bytes, bool], None],
    ) -> None:
        self.number = number
        self.slot = slot
        self.tenant = ""
        self.one: Invoked | None = None
        self.last_use = time.monotonic()
        self.usage = (0.0, 0.0, 0)
        self._home = home
        self._lasting = lasting
        self._gate = gate
        self._free, self._gone, self._printed = free, gone, printed
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._group: Group | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_chance: asyncio.TimerHandle | None = None
        self._doomed = self._timed_out = self._over = False
        self._output, self._more, self._bytes = bytearray(), False, 0
        self._most_result = home.spec.max_result
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = -1
        written = -1
        try:
            self._log, written = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._log, False)
            home.fork(number, slot, [theirs.fileno(), written], self)
        except BaseException:
            self._link.close()
            if self._log >= 0:
                os.close(self._log)
            raise
        finally:
            theirs.close()
            if written >= 0:
                os.close(written)
        self._link.setblocking(False)
        self._loop.add_reader(self._link.fileno(), self._heard)
        self._loop.add_reader(self._log, self._logged)

    @property
    def doomed(self) -> bool:
        """Whether it was killed."""
        return self._doomed

    # What the function's host asks.

    def call(self, one: Invoked) -> None:
        """Let it answer an invocation."""
        self.one = one
        self.last_use = time.monotonic()
        self._output, self._more = bytearray(), False
        self._timer = self._loop.call_later(self._home.spec.timeout, self._expire)
        if self._gate is None or self._group is not None:
            self._send()

    def kill(self) -> None:
        """End it, with everything in it."""
        if self._over:
            return
        self._doomed = True
        if self._pidfd >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._last_chance is None:
            self._last_chance = self._loop.call_later(_GRACE, self._insist)

    # Inside.

    def _insist(self) -> None:
        if not self._over:
            self._home.stop()  # it does not tell of the end: so it is not believed to be whole

    def _send(self) -> None:
        assert self.one is not None
        one = self.one
        one.is_called()
        data, fds = call_words(one, self._home.spec.timeout)
        try:
            if fds:
                socket.send_fds(self._link, [data], fds)
            else:
                self._link.send(data)
        except OSError as e:
            one.finish("start_failed", f"it takes no call: {e.strerror}")
            self.kill()

    def _expire(self) -> None:
        self._timed_out = True
        self.kill()

    def born(self, pidfd: int) -> None:
        """Take the process."""
        if self._over or self._pidfd >= 0:
            os.close(pidfd)
            return
        self._pidfd = pidfd
        if self._doomed:
            self.kill()
        elif self._gate is not None:
            self._gate(_pid_of(pidfd)).add_done_callback(self._gated)

    def _gated(self, done: asyncio.Future[Group]) -> None:
        error = done.exception()
        if error is None:
            self._group = done.result()
            if self._over:
                self._drop_group()
            elif self.one is not None and not self._doomed:
                self._send()
        elif not self._over:
            if self.one is not None:
                self.one.finish("start_failed", f"its limits: {error}")
            self.kill()

    def _heard(self) -> None:
        try:
            data, fds = receive(self._link)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._let_link_go()
            self.kill()  # it let go of us: so do we of it
            return
        try:
            self._take(data, fds)
        except (IndexError, ValueError, OverflowError, OSError):
            if self.one is not None:
                self.one.finish("crashed", "it answered nonsense")
            self.kill()
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, data: bytes, fds: list[int]) -> None:
        """Hear its answer. It may lie, about itself only, and in a fixed form."""
        word, outcome, kind, user, system, rest = data.split(b"\0", 5)
        one = self.one
        if one is None or self._doomed:
            return
        said = outcome.decode()
        if word != b"answer" or said not in OUTCOMES or said in _UNBELIEVABLE:
            raise ValueError("no answer")
        self._logged()
        one.account.user, one.account.system = _seconds(user), _seconds(system)
        value = Value(kind.decode(), rest)
        if kind.endswith(b"-file"):
            value = Value(value.kind.removesuffix("-file"), file=os.dup(fds[0]))
            said, value = self._measured(said, value)
        elif len(rest) > self._most_result:
            said, value = self._too_large(len(rest))
        if self._timer is not None:
            self._timer.cancel()
        self._flush(one)
        if said == "start_failed" or not self._lasting:
            self.kill()  # nothing of it runs on
        else:
            self.one = None
            self.last_use = time.monotonic()
        one.finish(said, value)
        self._free(self)

    def _measured(self, said: str, value: Value) -> tuple[str, Value]:
        """Look at a result in a file: it must be one that can no longer change."""
        assert value.file is not None
        seals = fcntl.fcntl(value.file, fcntl.F_GET_SEALS)
        size = os.fstat(value.file).st_size
        if seals & _SEALS == _SEALS and size <= self._most_result:
            return said, value
        os.close(value.file)
        if seals & _SEALS != _SEALS:
            raise ValueError("not sealed")
        return self._too_large(size)

    def _too_large(self, size: int) -> tuple[str, Value]:
        words = f"its result has {size} bytes, more than max_result = {self._most_result}"
        return "result_too_large", Value("text", words.encode())

    def _logged(self) -> None:
        if self._log < 0:
            return
        room = MOST_LOG - len(self._output)
        try:
            if room > 0:
                data = os.read(self._log, room)
                self._output += data
                if data:
                    return
            elif _drained(self._log):
                self._more = True
                return
        except BlockingIOError:
            return
        self._let_log_go()

    def _flush(self, one: Invoked) -> None:
        if self._output:
            self._printed(one.number, bytes(self._output), self._more)
        self._output, self._more = bytearray(), False

    def _let_link_go(self) -> None:
        if self._link.fileno() >= 0:
            self._loop.remove_reader(self._link.fileno())
            self._link.close()

    def _let_log_go(self) -> None:
        if self._log >= 0:
            self._loop.remove_reader(self._log)
            os.close(self._log)
            self._log = -1

    def stillborn(self, reason: str) -> None:
        """There will be no process, or the zygote with all its forks is gone."""
        if self.one is not None:
            self.one.finish(*self._verdict(None, reason))
        self._finish()

    def ended(self, status: int, user: float, system: float, max_rss: int) -> None:
        """Take its end."""
        self.usage = (user, system, max_rss)
        if self._link.fileno() >= 0 and not self._doomed:
            self._heard()  # its last words
        one = self.one
        self._logged()
        if one is not None:
            one.account.user, one.account.system, one.account.max_rss = self.usage
            if self._group is not None:
                one.account.memory_peak = self._group.usage().get("memory_peak", 0)
            if not one.over:
                self._flush(one)
                one.finish(*self._verdict(status, ""))
        self._finish()

    def _verdict(self, status: int | None, reason: str) -> tuple[str, str]:
        timeout = self._home.spec.timeout
        if self._timed_out:
            return "timed_out", f"it took longer than {timeout:g} s, and was killed"
        if self._group is not None and self._group.out_of_memory():
            return "out_of_memory", f"it reached its memory limit of {self._home.spec.memory} bytes"
        if status is None:
            return "crashed", reason
        code = os.waitstatus_to_exitcode(status) if status & 0x7F != 0x7F else 1
        if code < 0:
            return "crashed", f"it was killed by {_signal_name(-code)} before it answered"
        return "exited", f"its process ended with {code} before it answered"

    def _finish(self) -> None:
        if self._over:
            return
        self._over = True
        for timer in (self._timer, self._last_chance):
            if timer is not None:
                timer.cancel()
        self._let_link_go()
        self._let_log_go()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._drop_group()
        self._gone(self)

    def _drop_group(self, attempt: int = 0) -> None:
        """Remove its group without waiting for what was killed."""
        if self._group is not None and not self._group.remove() and attempt < 20:
            pause = 0.001 * 2 ** min(attempt, 10)
            self._loop.call_later(pause, self._drop_group, attempt + 1)


def _drained(fd: int) -> bool:
    """Throw away what is in a pipe, in the kernel; false at its end."""
    with open(os.devnull, "wb") as null:  # noqa: PTH123
        return os.splice(fd, null.fileno(), _DRAIN) > 0


def _seconds(word: bytes) -> float:
    value = float(word)
    if not 0 <= value < 10**9:
        raise ValueError("no time")
    return value


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def _pid_of(pidfd: int) -> int:
    """Return the pid, as this process's namespace has it, that a pidfd stands for (proc(5))."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid" and int(value) > 0:
            return int(value)
    raise SandboxError("its zygote gave no process")
