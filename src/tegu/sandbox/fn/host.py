"""A function in the supervisor: its version's zygote or template, its queue, what runs of it."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import SandboxError, TeguError
from tegu.linux.cgroups import Group
from tegu.sandbox.fn.fork import Fork
from tegu.sandbox.fn.home import Home
from tegu.sandbox.fn.invoked import Event, Invoked, Value
from tegu.sandbox.fn.records import Journal, Tally
from tegu.sandbox.fn.spec import FunctionSpec

if TYPE_CHECKING:
    from tegu.sandbox.supervisor import Supervisor

__all__ = ["Host", "PythonHost"]

_ENDING = 64
"""How many forks more may be on their way out before others wait for them."""


class Host(ABC):
    """One version: admits, queues, starts. What answers is the subclass's."""

    def __init__(
        self,
        supervisor: Supervisor,
        spec: FunctionSpec,
        version: str,
        code: Path,
        tally: Tally,
        journal: Journal,
    ) -> None:
        self.spec = spec
        self.version = version
        self.code = code
        self.tally = tally
        self.journal = journal
        self.closed = False
        self.last_use = time.monotonic()
        self._supervisor = supervisor
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Invoked] = deque()
        self._starting: asyncio.Task[None] | None = None
        self._numbers = 0

    @property
    @abstractmethod
    def warm(self) -> bool:
        """Whether an invocation need not wait for anything to be started first."""

    @abstractmethod
    def running(self) -> int:
        """Return how many places of `concurrency` are taken."""

    @abstractmethod
    async def _start(self) -> None:
        """Make it warm; raises TeguError that says why that cannot be."""

    @abstractmethod
    def _run(self, one: Invoked) -> None:
        """Have an invocation run; raises TeguError when it cannot."""

    @abstractmethod
    def stop(self) -> None:
        """Let all go that is kept running, and kill what runs."""

    def waiting(self) -> int:
        """Return how many invocations wait."""
        return len(self._queue)

    def submit(self, one: Invoked) -> None:
        """Take an invocation: it runs at once, or waits, or is refused when too many wait."""
        self.last_use = time.monotonic()
        room = max(0, self.spec.concurrency - self.running()) + self.spec.queue
        if len(self._queue) >= room:
            seconds = self.retry_after()
            words = f"{self.running()} run and {len(self._queue)} wait: try again in {seconds} s"
            one.finish("queue_full", words)
            return
        self._queue.append(one)
        self._pump()

    def retry_after(self) -> int:
        """Return the whole seconds after which there may be room, by how long they took of late."""
        each = self.tally.mean_wall() or 1.0
        return max(1, math.ceil(each * len(self._queue) / self.spec.concurrency))

    def cancel(self, one: Invoked) -> None:
        """Forget an invocation that nobody waits for."""
        if one in self._queue:
            self._queue.remove(one)
        one.finish("cancelled", "whoever asked is gone")

    def _pump(self) -> None:
        if not self._queue or self.closed:
            return
        if not self.warm:
            self._warm_up()
            return
        while (one := self._next()) is not None:
            one.its_turn()
            try:
                self._run(one)
            except TeguError as e:
                one.finish("start_failed", e.message)
            except OSError as e:
                one.finish("start_failed", f"{e.filename or 'its sandbox'}: {e.strerror}")

    def _next(self) -> Invoked | None:
        """Take from the queue what may run now."""
        if self._queue and self.running() < self.spec.concurrency:
            return self._queue.popleft()
        return None

    def _warm_up(self) -> None:
        if self._starting is None:
            self._starting = self._loop.create_task(self._start())
            self._starting.add_done_callback(self._started)
        for one in list(self._queue)[: self.spec.concurrency]:
            one.its_turn()  # what it waits for now is a start
            one.account.cold = True

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        problem = "it was stopped" if task.cancelled() else ""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            problem = error.message if isinstance(error, TeguError) else repr(error)
        if not problem:
            self.tally.starts += 1
            self._pump()
            return
        waiting, self._queue = self._queue, deque()
        for one in waiting:
            one.finish("start_failed", problem)

    async def ready(self) -> None:
        """Make it warm and look whether its handler is there; raises SandboxError."""
        if not self.warm:
            await self._start()
            self.tally.starts += 1
        await self._check()

    async def _check(self) -> None:
        return

    def tend(self) -> None:
        """Let it go when it was not used for long."""
        idle = time.monotonic() - self.last_use
        if idle > self.spec.idle and not self._queue and not self.running() and self.warm:
            self.stop()

    def close(self) -> None:
        """End: what runs is killed, what waits is answered."""
        self.closed = True
        if self._starting is not None:
            self._starting.cancel()
        waiting, self._queue = self._queue, deque()
        for one in waiting:
            one.finish("cancelled", "the function was removed")
        self.stop()

    def printed(self, invocation: str, data: bytes, more: bool = False) -> None:
        """Take what an invocation printed."""
        self.journal.add(
            invocation, data.decode(errors="replace"), version=self.version, truncated=more
        )

    def _gate(self) -> Callable[[int], asyncio.Future[Group]] | None:
        """Return what puts a process under the limits that only control groups can give.

        In a thread: a move into a group may wait for all processors, in which nobody else shall.
        """
        spec = self.spec
        if spec.memory is None and spec.cpus is None:
            return None
        groups = self._supervisor.groups
        self._numbers += 1
        name = f"fn-{spec.name}-{self.version[:8]}-{self._numbers}"

        def attach(pid: int) -> Group:
            group = groups.create(name, memory=spec.memory, cpus=spec.cpus, pids=None)
            try:
                group.attach(pid)
            except BaseException:
                group.remove()
                raise
            return group

        return lambda pid: self._loop.run_in_executor(self._supervisor.thread, attach, pid)


class PythonHost(Host):
    """A version of the runtime python: forks of a zygote."""

    def __init__(self, *arguments: Any, imports: list[str], slot: Callable[[], int]) -> None:
        super().__init__(*arguments)
        self._imports = imports
        self._slot = slot
        self._home: Home | None = None
        self._forks: set[Fork] = set()
        self._ready: dict[str, Fork] = {}
        """Forks that wait for another call of their tenant; the least recently used first."""
        self._busy: set[Fork] = set()
        """Forks that are to answer."""

    @property
    def warm(self) -> bool:
        """Whether its zygote is there."""
        return self._home is not None and self._home.alive

    @property
    def python(self) -> str:
        """The version of Python that it runs with, or "" where none runs."""
        return self._home.python if self._home is not None else ""

    @property
    def zygote(self) -> int:
        """The pid of what holds its zygote; 0 when there is none."""
        return self._home.pid if self._home is not None else 0

    def running(self) -> int:
        """Return how many forks have not answered yet.

        One that has is killed at once, but taking its namespaces apart takes the kernel longer.
        """
        return len(self._busy)

    def _next(self) -> Invoked | None:
        concurrency = self.spec.concurrency
        living = len(self._busy) + len(self._ready)
        full = living >= concurrency or len(self._forks) >= living + _ENDING + concurrency
        if self.spec.sandbox == "invocation":
            return self._queue.popleft() if self._queue and not full else None
        busy = {f.tenant for f in self._busy}
        for one in self._queue:
            # A tenant's sandbox answers one call after the other; others need not wait for it.
            if one.tenant in self._ready or (one.tenant not in busy and not full):
                self._queue.remove(one)
                return one
        if full and self._ready and any(one.tenant not in busy for one in self._queue):
            self._ready.pop(next(iter(self._ready))).kill()  # makes room once it is gone
        return None

    async def _start(self) -> None:
        home = Home(
            self.spec,
            self.version,
            self.code,
            slot=self._slot(),
            privileged=self._supervisor.privileged,
            compiled=self._supervisor.launcher is not None,
            heard=lambda data: self.printed("", data),
            lost=self._lost,
        )
        self._home = home
        await home.start(self._imports)

    async def _check(self) -> None:
        answered: asyncio.Future[tuple[str, str]] = self._loop.create_future()

        def done(one: Invoked, outcome: str, value: Value) -> None:
            if not answered.done():
                answered.set_result((outcome, value.data.decode(errors="replace")))

        self._run(Invoked("check", Event("json", b"null"), done, check=True))
        outcome, words = await answered
        if outcome != "ok":
            raise SandboxError(words)

    def _lost(self) -> None:
        self._pump()

    def _run(self, one: Invoked) -> None:
        assert self._home is not None
        one.its_turn()
        lasting = self.spec.sandbox == "tenant"
        fork = self._ready.pop(one.tenant, None) if lasting else None
        if fork is None:
            self._numbers += 1
            taken = {f.slot for f in self._forks}
            fork = Fork(
                self._home,
                f"{self._numbers:x}",
                next(n for n in range(len(taken) + 1) if n not in taken),
                lasting=lasting,
                gate=self._gate(),
                free=self._freed,
                gone=self._went,
                printed=self.printed,
            )
            fork.tenant = one.tenant
            self._forks.add(fork)
        one.kill = fork.kill
        self._busy.add(fork)
        fork.call(one)

    def _freed(self, fork: Fork) -> None:
        self._busy.discard(fork)
        if not fork.doomed:
            self._ready[fork.tenant] = fork
        self._pump()

    def _went(self, fork: Fork) -> None:
        self._forks.discard(fork)
        self._busy.discard(fork)
        if self._ready.get(fork.tenant) is fork:
            del self._ready[fork.tenant]
        self.tally.cpu += fork.usage[0] + fork.usage[1]
        self._pump()

    def tend(self) -> None:
        """Let tenants' sandboxes go when they were not used for long, and the zygote after them."""
        for fork in list(self._ready.values()):
            if time.monotonic() - fork.last_use > self.spec.idle:
                self._ready.pop(fork.tenant).kill()
        super().tend()

    def cancel(self, one: Invoked) -> None:
        """Forget an invocation; what runs of it is killed."""
        over = one.over
        super().cancel(one)
        if not over:
            one.kill()

    def stop(self) -> None:
        """Let the zygote go, and all its forks."""
        if self._home is not None:
            home, self._home = self._home, None
            home.stop()
