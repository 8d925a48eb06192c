"""Networks and published ports of boxes, as the supervisor keeps them: the relay, and who has what.

The relay starts when the first is asked for. Should it end, the boxes that it served end too, as
they do when their supervisor goes: a network that is silently dead would be worse.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tegu.errors import SandboxError, UnsupportedError
from tegu.linux import sklookup
from tegu.sandbox.box import Box, Pending
from tegu.sandbox.net.maker import Made, make, open_low_ports
from tegu.sandbox.net.policy import Policy
from tegu.sandbox.net.ports import MAX_PORTS, Published
from tegu.sandbox.spawned import Spawned, bare_python, start_python
from tegu.sandbox.wireless import tell

__all__ = ["Networks"]

_DEADLINE = 60.0
_IDLE = 60.0
_REMEMBERED = 32
_LOW = 1024
_T = TypeVar("_T")
_USERS = "a user's supervisor may not load the BPF program that steers it"


@dataclass
class _Attached:
    """What a box has: the link that steers its network, its ports by name, what was refused."""

    made: Made | None = None
    ports: dict[str, Published] = field(default_factory=dict)
    refused: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class Networks(Spawned):
    """Gives boxes their networks and ports."""

    where = "the relay of networks: "

    def __init__(self, *, privileged: bool) -> None:
        super().__init__()
        self._privileged = privileged
        self._starting: asyncio.Task[None] | None = None
        self._attached: dict[str, _Attached] = {}
        self._boxes: dict[str, Box] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._number = 0
        self._last_use = time.monotonic()

    def why_not(self) -> str:
        """Return why no box can have a network here, or ""; tried out, never assumed."""
        if not self._privileged:
            return _USERS
        try:
            sklookup.try_load()
        except OSError as e:
            return f"{e.filename or 'bpf'}: {e.strerror}"
        return ""

    def check(self) -> None:
        """Raise UnsupportedError when no box can have a network here."""
        if not self._privileged:
            raise UnsupportedError(
                f"a network beyond none: {_USERS}", hint="root's supervisor may: run it as root"
            )

    async def _start(self) -> None:
        """See that the relay runs. Raises SandboxError."""
        self._last_use = time.monotonic()
        if self.alive and self._starting is None:
            return
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start_relay())
        try:
            await asyncio.shield(self._starting)
        finally:
            if self._starting is not None and self._starting.done():
                self._starting = None

    async def _start_relay(self) -> None:
        command = bare_python("tegu.sandbox.net.relay")
        command.append("root" if self._privileged else "user")
        self._begin(lambda link: start_python(command, link))
        try:
            async with asyncio.timeout(_DEADLINE):
                await self._expect("ready")
        except TimeoutError as e:
            self.stop()
            raise SandboxError(f"{self.where}it does not answer") from e
        except BaseException:
            self.stop()
            raise

    # Networks.

    async def attach(self, box: Box, network: str | Sequence[str]) -> None:
        """Give a box, in which nothing runs yet, its network. Raises SandboxError."""
        await self._start()
        loop = asyncio.get_running_loop()
        policy = Policy(network)
        try:
            made = await self._within(box, lambda namespace: make(namespace, policy))
        except PermissionError as e:
            raise UnsupportedError(
                f"a network beyond none: {e.filename}: {e.strerror}",
                hint="it takes CAP_BPF and CAP_NET_ADMIN of the host",
            ) from e
        except OSError as e:
            raise SandboxError(f"box {box.name}: its network: {e.filename}: {e.strerror}") from e
        if box.state == "dead" or self._link is None:
            made.close()
            raise box.error or SandboxError(f"box {box.name} has ended")
        self._entry(box).made = made
        ready: asyncio.Future[None] = loop.create_future()
        self._waiting[box.name] = ready
        try:
            self._hand_over(box.name, network, made)
            made.let_go()
            async with asyncio.timeout(_DEADLINE):
                await ready
        except TimeoutError as e:
            raise SandboxError(f"{self.where}it does not answer") from e
        finally:
            self._waiting.pop(box.name, None)

    async def _within(self, box: Box, call: Callable[[int], _T]) -> _T:
        """Call with a descriptor of the box's network namespace, in a thread that ends then.

        Raises OSError.
        """
        if box.state == "dead":
            raise box.error or SandboxError(f"box {box.name} has ended")
        # Here, where it cannot have been waited for: later its pid may be another's.
        namespace = os.open(f"/proc/{box.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        def work() -> _T:
            try:
                return call(namespace)
            finally:
                os.close(namespace)

        return await asyncio.wrap_future(_in_a_thread(work))

    def _hand_over(self, name: str, network: str | Sequence[str], made: Made) -> None:
        assert made.addresses is not None
        fds = [one.fileno() for one in made.sockets.values()]
        words = (network,) if isinstance(network, str) else network
        self._tell("network", name, ",".join(made.sockets), *words, fds=[*fds, made.addresses.fd])

    def _tell(self, *words: str, fds: list[int] | None = None) -> None:
        if self._link is None:
            raise SandboxError(f"{self.where}it has ended")
        try:
            tell(self._link, *words, fds=fds or [])
        except OSError as e:
            raise SandboxError(f"{self.where}{e.strerror}") from e

    def _entry(self, box: Box) -> _Attached:
        self._last_use = time.monotonic()
        found = self._attached.get(box.name)
        if found is None:
            found = self._attached[box.name] = _Attached()
            self._boxes[box.name] = box
            box.when_dead(lambda: self._detach(box.name))
        return found

    def _detach(self, name: str) -> None:
        """Let go of what a box had, which has ended."""
        self._last_use = time.monotonic()
        self._boxes.pop(name, None)
        found = self._attached.pop(name, None)
        waiting = self._waiting.pop(name, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(SandboxError(f"box {name} has ended"))
        if found is None:
            return
        with suppress(SandboxError):  # a relay that is gone has let go already
            for port in found.ports:
                self._tell("withdraw", port)
            if found.made is not None:
                self._tell("gone", name)
        if found.made is not None:
            found.made.close()

    # Ports.

    async def publish(self, box: Box, wanted: Published) -> Published:
        """Let a port of the host lead to one of a box; returns it as it is. Raises SandboxError."""
        if not box.spec.init:
            raise SandboxError(f"box {box.name} has no first process that could open ports")
        await self._start()
        found = self._attached.get(box.name)
        if wanted.port < _LOW and (found is None or found.made is None):
            try:
                await self._within(box, open_low_ports)
            except OSError as e:
                raise SandboxError(f"box {box.name}: its low ports: {e.strerror}") from e
        if box.state == "dead":
            raise box.error or SandboxError(f"box {box.name} has ended")
        entry = self._entry(box)
        if len(entry.ports) >= MAX_PORTS:
            raise SandboxError(f"box {box.name} has {MAX_PORTS} ports published already")
        address = ipaddress.ip_address(wanted.address)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((wanted.address, wanted.host_port))
                listener.listen(128)
            except OSError as e:
                place = f"{wanted.address}:{wanted.host_port}"
                raise SandboxError(f"cannot publish {place}: {e.strerror}") from e
            opened = replace(wanted, host_port=listener.getsockname()[1])
            self._number += 1
            name = f"p{self._number}"
            self._tell("publish", name, str(wanted.port), fds=[listener.fileno()])
        entry.ports[name] = opened
        return opened

    def withdraw(self, box: Box, port: int) -> bool:
        """Let nothing lead to a port of a box any more; whether anything did."""
        entry = self._attached.get(box.name)
        names = [n for n, p in entry.ports.items() if p.port == port] if entry else []
        for name in names:
            assert entry is not None
            del entry.ports[name]
            self._tell("withdraw", name)
        return bool(names)

    def _socket(self, name: str) -> None:
        """The relay has a connection for a published port: the box is asked for a socket."""
        found = next((n for n, a in self._attached.items() if name in a.ports), None)
        box = self._boxes.get(found) if found is not None else None

        def done(answer: object) -> None:
            fds = answer if isinstance(answer, list) else []
            with suppress(SandboxError):
                self._tell("socket", name, fds=fds)
            for fd in fds:
                os.close(fd)

        try:
            if box is None:
                raise SandboxError("there is no such box")
            box.socket(Pending(done))
        except SandboxError as e:
            done(e)

    # What it says, and its end.

    def about(self, box: Box) -> dict[str, Any]:
        """Return the ports of a box, and what it was refused of late."""
        found = self._attached.get(box.name) or _Attached()
        return {
            "ports": [p.to_json() for p in found.ports.values()],
            "refused": list(found.refused),
        }

    def _take(self, words: list[str], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if words[0] == "ready" and len(words) > 1 and words[1]:
            waiting = self._waiting.get(words[1])
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif words[0] == "refused" and len(words) > 2:
            found = self._attached.get(words[1])
            if found is not None and words[2] not in found.refused:
                found.refused.append(words[2])
        elif words[0] == "socket" and len(words) > 1:
            self._socket(words[1])
        else:
            self._settle(words)

    def _gone(self) -> None:
        self.stop()
        for name, box in list(self._boxes.items()):
            if box.error is None:
                box.error = SandboxError(f"box {name}: the relay of its network has ended")
            box.kill()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(SandboxError(f"{self.where}it has ended"))

    def tend(self) -> None:
        """Let the relay go when no box has needed it for a minute."""
        unused = not self._attached and self._starting is None
        if self.alive and unused and time.monotonic() - self._last_use > _IDLE:
            self.stop()


def _in_a_thread(call: Callable[[], _T]) -> Future[_T]:
    """Call in a thread of its own: one that has entered a box's network namespace does no more."""
    done: Future[_T] = Future()
    done.set_running_or_notify_cancel()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as e:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(e)

    threading.Thread(target=work, name="network", daemon=True).start()
    return done
