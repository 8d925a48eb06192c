"""One version's zygote as the supervisor sees it: started, told what to be, asked for forks."""

from __future__ import annotations

import asyncio
import marshal
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import tegu
from tegu.errors import SandboxError
from tegu.linux import landlock, mountapi
from tegu.sandbox.devices import new_devices
from tegu.sandbox.fn.policy import ZYGOTE_CAPABILITIES, invocation_filter, zygote_filter
from tegu.sandbox.fn.spec import FunctionSpec
from tegu.sandbox.fn.zygote import CODE, LIBRARY
from tegu.sandbox.nursery import FIRST_ID, IDS, hand_over
from tegu.sandbox.spawned import Spawned, bare_python, start_python
from tegu.sandbox.spec import BASE_ENVIRONMENT
from tegu.sandbox.template import Template, find_template
from tegu.sandbox.wireless import tell

__all__ = ["Child", "Home"]

_DEADLINE = 60.0
"""Seconds that a zygote may take for its imports."""
_SPARE_NETWORKS = 4


class Child(Protocol):
    """What waits for a fork and hears of its end."""

    def born(self, pidfd: int) -> None:
        """Take the process."""

    def stillborn(self, reason: str) -> None:
        """There will be no process."""

    def ended(self, status: int, user: float, system: float, max_rss: int) -> None:
        """It has ended; `status` as wait(2) has it, CPU time in seconds, `max_rss` in bytes."""


class Home(Spawned):
    """The zygote of one version of a function. `lost` is called when it ends by itself."""

    def __init__(
        self,
        spec: FunctionSpec,
        version: str,
        code: Path,
        *,
        slot: int,
        privileged: bool,
        compiled: bool,
        heard: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.python = ""
        """The version of the template's Python."""
        self._version = version
        self._code = code
        self._first_id = FIRST_ID + slot * IDS if privileged else 0
        self._privileged = privileged
        self._compiled = compiled
        self._said = heard
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._log = -1
        self._children: dict[str, Child] = {}

    @property
    def pid(self) -> int:
        """The process that holds it, in the supervisor's pid namespace; 0 when there is none."""
        return self._pid

    async def start(self, imports: list[str]) -> None:
        """Start it and wait until its imports are loaded; raises SandboxError that says why not."""
        self._log, written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(written, True)
        command = bare_python("tegu.sandbox.fn.zygote")
        try:
            self._begin(lambda link: start_python(command, link, log=written))
        finally:
            os.close(written)
        self._loop.add_reader(self._log, self._logged)
        late = f"its imports took longer than {_DEADLINE:g} s"
        self.python = (await self._hatch(lambda: self._send_plan(imports), _DEADLINE, late))[1]

    def _send_plan(self, imports: list[str]) -> None:
        self._map_ids(self._first_id, IDS)
        template = find_template(self.spec.template)
        users = os.open(f"/proc/{self._pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            root, mounts, fds = template.open(users if self._privileged else None)
        finally:
            os.close(users)
        try:
            for inside, outside in self._laid():
                mounts.append((inside, len(fds)))
                flags = mountapi.MOUNT_ATTR_NOSUID | mountapi.MOUNT_ATTR_NODEV
                fds.append(mountapi.detached(outside, read_only=True, flags=flags))
            plan = self._plan(template, imports, root, mounts)
            if self._privileged:
                plan["devices"] = len(fds)
                fds.append(new_devices())
            assert self._link is not None
            hand_over(self._link, marshal.dumps(plan), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _laid(self) -> list[tuple[str, str]]:
        package = Path(tegu.__file__).parent
        return [(CODE, str(self._code)), (f"{LIBRARY}/tegu", str(package))]

    def _plan(
        self,
        template: Template,
        imports: list[str],
        root: int | None,
        mounts: list[tuple[str, int]],
    ) -> dict[str, Any]:
        spec = self.spec
        world = {
            "name": spec.name,
            "version": self._version,
            "handler": spec.handler,
            "load": spec.load,
            "imports": imports,
            "compiled": self._compiled,
            "landlock": landlock.abi() > 0,
            "filter": _invocation_filter(),
            "disk": spec.disk,
            "inodes": max(1024, spec.disk // 4096),
            "files": spec.files,
            "pids": spec.pids,
            "spare_networks": min(_SPARE_NETWORKS, spec.concurrency),
        }
        return {
            "root": root,
            "skeleton": list(template.skeleton),
            "mounts": mounts,
            "devices": None,
            "filter": _zygote_filter(),
            "keep": ZYGOTE_CAPABILITIES,
            "environment": {
                **BASE_ENVIRONMENT,
                "HOME": "/tmp",
                "PYTHONDONTWRITEBYTECODE": "1",
                **spec.env,
            },
            "world": world,
        }

    def _take(self, words: list[str], fds: list[int]) -> None:
        kept = False
        try:
            kept = self._hear(words, fds)
        except (IndexError, ValueError, OverflowError):
            self._gone()  # it talks nonsense: the author's code may run in there
        finally:
            if not kept:
                for fd in fds:
                    os.close(fd)

    def _hear(self, words: list[str], fds: list[int]) -> bool:
        """Hear what it says of its own forks; returns whether the descriptor was taken over."""
        if words[0] == "born":
            child = self._children.get(words[1])
            if child is not None and len(fds) == 1:
                child.born(fds[0])
                return True
        elif words[0] == "failed":
            child = self._children.pop(words[1], None)
            if child is not None:
                child.stillborn(words[2])
        elif words[0] == "ended":
            child = self._children.pop(words[1], None)
            if child is not None:
                status, user, system, rss = words[2:6]
                child.ended(int(status) & 0xFFFF, float(user), float(system), int(rss) * 1024)
        else:
            self._settle(words)
        return False

    def _logged(self) -> None:
        try:
            data = os.read(self._log, 65536)
        except BlockingIOError:
            return
        if data:
            self._said(data)
        else:
            self._loop.remove_reader(self._log)

    def fork(self, number: str, slot: int, fds: list[int], child: Child) -> None:
        """Ask for a fork that answers calls on `fds[0]` and logs to `fds[1]`."""
        if self._link is None:
            raise SandboxError("its zygote has ended")
        self._children[number] = child
        try:
            tell(self._link, "fork", number, str(slot), fds=fds)
        except OSError as e:
            del self._children[number]
            raise SandboxError(f"too many are being started: {e.strerror}") from e

    def _gone(self) -> None:
        lost = self._answer is None
        self.stop()
        if lost:
            self._lost()

    def stop(self) -> None:
        """Kill it, with all its forks."""
        # What holds it waits for it only: with it the pid namespace goes.
        super().stop()
        if self._log >= 0:
            self._loop.remove_reader(self._log)
            with suppress(OSError):
                while data := os.read(self._log, 65536):
                    self._said(data)
            os.close(self._log)
            self._log = -1
        waiting, self._children = self._children, {}
        for child in waiting.values():
            child.stillborn("its zygote has ended")


@cache
def _invocation_filter() -> bytes:
    return invocation_filter()


@cache
def _zygote_filter() -> bytes:
    return zygote_filter()
