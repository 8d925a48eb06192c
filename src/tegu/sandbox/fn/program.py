"""Functions that are programs: each invocation a box, the event on its stdin, the result on stdout.

The box sees the code at /fn and starts there. What the program writes to stderr is its log; with
exit code 0 its output is the result, as JSON when it is JSON, else as bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tegu.errors import SandboxError
from tegu.sandbox.box import Box, Outcome, Pending
from tegu.sandbox.fn.host import Host
from tegu.sandbox.fn.invoked import Invoked, Value
from tegu.sandbox.fn.records import MOST_LOG
from tegu.sandbox.fn.zygote import CODE
from tegu.sandbox.spec import BoxSpec, Limits, RunSpec
from tegu.sandbox.template import Template, find_template

if TYPE_CHECKING:
    from tegu.sandbox.fn.spec import FunctionSpec

__all__ = ["ProgramHost", "template_of"]

_CHUNK = 65536


def template_of(spec: FunctionSpec, code: str, name: str) -> Template:
    """Return a function's template under `name`, with its code laid in."""
    found = find_template(spec.template)
    skeleton = [*found.skeleton, (CODE, "dir", "0755")]
    return replace(found, name=name, skeleton=skeleton, mounts=[*found.mounts, (CODE, code)])


class _Reader:
    """Reads a pipe to its end; keeps `most` bytes, then says so once and throws the rest away."""

    def __init__(self, most: int, full: Callable[[], None] | None) -> None:
        self.data = bytearray()
        self.more = False
        self.inner, self.outer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.inner, False)
        self._most = most
        self._full = full
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.inner, self.read)

    def read(self) -> None:
        """Take what is there."""
        while self.inner >= 0:
            try:
                got = os.read(self.inner, _CHUNK)
            except BlockingIOError:
                return
            if not got:
                self.close()
                return
            room = self._most - len(self.data)
            self.data += got[:room]
            if len(got) > room and not self.more:
                self.more = True
                if self._full is not None:
                    self._full()
            if room < _CHUNK:
                return  # a flood waits for others' turns

    def let_go(self) -> None:
        """Close the program's end here: it has its own."""
        if self.outer >= 0:
            os.close(self.outer)
            self.outer = -1

    def close(self) -> None:
        """Read no more."""
        self.let_go()
        if self.inner >= 0:
            self._loop.remove_reader(self.inner)
            os.close(self.inner)
            self.inner = -1


class ProgramHost(Host):
    """A version of the runtimes exec and java."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._boxes: set[Box] = set()
        spec = self.spec
        self._name = f"/.fn/{self.version}"
        limits = Limits(spec.memory, spec.cpus, spec.pids, spec.files, spec.disk)
        self._box = BoxSpec(self._name, limits=limits, hostname="fn")

    @property
    def warm(self) -> bool:
        """Whether the zygote of its boxes is there."""
        return self._supervisor.zygote_now(self._name) is not None

    def running(self) -> int:
        """Return how many boxes there are."""
        return len(self._boxes)

    async def _start(self) -> None:
        self._supervisor.templates[self._name] = template_of(self.spec, str(self.code), self._name)
        await self._supervisor.zygote(self._name)

    def _run(self, one: Invoked) -> None:
        box = self._supervisor.take(self._box)
        self._boxes.add(box)
        box.owner = self
        box.when_dead(lambda: self._went(box))
        one.kill = box.kill
        task = self._loop.create_task(self._converse(one, box))
        task.add_done_callback(lambda t: self._failed(one, box, t))

    def _failed(self, one: Invoked, box: Box, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None or task.cancelled():
            words = getattr(error, "message", None) or repr(error)
            one.finish("start_failed", words)
            box.kill()

    async def _converse(self, one: Invoked, box: Box) -> None:
        if self._supervisor.limit(box, self._box):
            born = asyncio.Event()
            box.when_born(born.set)
            await born.wait()
            if box.state == "dead":
                raise box.error or SandboxError("its box did not start")
            self._supervisor.limit(box, self._box)
        box.spec = self._box
        result = _Reader(self.spec.max_result, box.kill)
        log = _Reader(MOST_LOG, None)
        event = one.event.file
        try:
            if event is None:
                from tegu.sandbox.exchange import secret_file

                event = secret_file(one.event.data)
            else:
                os.lseek(event, 0, os.SEEK_SET)
            ended: asyncio.Future[Outcome | list[int] | SandboxError]
            ended = self._loop.create_future()
            one.is_called()
            run = RunSpec(
                self.spec.command,
                {"HOME": "/tmp", **self.spec.env, "TEGU_INVOCATION": one.number},
                cwd=CODE,
                timeout=self.spec.timeout,
            )
            box.once(run, [event, result.outer, log.outer], Pending(ended.set_result))
            result.let_go()
            log.let_go()
            answer = await ended
            result.read()
            log.read()
            if log.data:
                self.printed(one.number, bytes(log.data), log.more)
            self._answer(one, answer, result)
        finally:
            result.close()
            log.close()
            if event is not None and event != one.event.file:
                os.close(event)

    def _answer(
        self, one: Invoked, answer: Outcome | list[int] | SandboxError, result: _Reader
    ) -> None:
        if isinstance(answer, Outcome):
            account = one.account
            account.user, account.system = answer.user, answer.system
            account.max_rss = answer.max_rss
            self.tally.cpu += answer.user + answer.system
        if result.more:
            most = self.spec.max_result
            one.finish("result_too_large", f"it wrote more than max_result = {most} bytes")
        elif isinstance(answer, Outcome):
            one.finish(*_read_outcome(self.spec, answer, bytes(result.data)))
        elif isinstance(answer, SandboxError):
            one.finish("start_failed", answer.message)

    def _went(self, box: Box) -> None:
        self._boxes.discard(box)
        self._pump()

    def cancel(self, one: Invoked) -> None:
        """Forget an invocation; what runs of it is killed."""
        over = one.over
        super().cancel(one)
        if not over:
            one.kill()

    def stop(self) -> None:
        """Kill its boxes, and let their zygote go."""
        for box in list(self._boxes):
            box.kill()
        self._supervisor.drop_zygote(self._name)
        self._supervisor.templates.pop(self._name, None)


def _read_outcome(spec: FunctionSpec, outcome: Outcome, data: bytes) -> tuple[str, Value]:
    def words(text: str) -> Value:
        return Value("text", text.encode())

    if outcome.timed_out:
        return "timed_out", words(f"it took longer than {spec.timeout:g} s, and was killed")
    if outcome.out_of_memory:
        return "out_of_memory", words(f"it reached its memory limit of {spec.memory} bytes")
    if outcome.signal:
        return "crashed", words(f"it was killed by signal {outcome.signal}")
    if outcome.code:
        return "exited", words(f"it ended with exit code {outcome.code}")
    with suppress(ValueError, RecursionError):
        json.loads(data)
        return "ok", Value("json", data)
    return "ok", Value("bytes", data)
