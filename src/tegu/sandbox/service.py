"""What clients may ask of the supervisor, one JSON message each (tegu.sandbox.wire).

`{"op": ..., "n": ...}` is answered by `{"n": ..., "ok": ...}` or `{"n": ..., "error": {...}}`, in
any order. What a connection made ends with it, unless the box was made to be kept.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tegu.errors import SandboxError, TeguError, UnsupportedError, UsageError
from tegu.sandbox import doctor, wire
from tegu.sandbox.box import Box, Outcome, Pending, RefusedError
from tegu.sandbox.net.names import asks_written_names, point_at_resolver
from tegu.sandbox.net.ports import Published, parse_port
from tegu.sandbox.spec import BoxSpec, RunSpec
from tegu.sandbox.supervisor import Supervisor
from tegu.sandbox.vm.snapshots import check_name
from tegu.sandbox.vm.spawn import KINDS

if TYPE_CHECKING:
    from tegu.sandbox.fn.service import Functions

__all__ = ["Service"]

Answer = Outcome | list[int] | SandboxError
_Fds = list[int]  # _Connection has an operation of the name `list`


class Service:
    """The listening socket and its connections."""

    def __init__(
        self, supervisor: Supervisor, listener: socket.socket, stop: asyncio.Event
    ) -> None:
        self.supervisor = supervisor
        self.stop = stop
        self._listener = listener
        self._connections: set[_Connection] = set()
        self._functions: Functions | None = None
        self._words: object = {}
        self._spec = BoxSpec()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._accept)

    def spec(self, data: object) -> BoxSpec:
        """Return the box that is described; the same words as last time are not read again."""
        if data != self._words:
            self._spec, self._words = BoxSpec.from_json(data), data
        return self._spec

    def busy(self) -> bool:
        """Whether a client is connected."""
        return bool(self._connections) or (self._functions is not None and self._functions.busy())

    def functions(self) -> Functions:
        """Return what keeps functions; loaded when the first is asked for."""
        if self._functions is None:
            from tegu.sandbox.fn.service import Functions

            self._functions = Functions(self.supervisor)
        return self._functions

    def _accept(self) -> None:
        for _ in range(64):
            try:
                link, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                return  # out of descriptors: the client waits in the queue
            if not _may(link):
                link.close()
                continue
            connection = _Connection(self, link, self._connections.discard)
            self._connections.add(connection)
            connection.heard()

    def close(self) -> None:
        """Hear no more."""
        if self._functions is not None:
            self._functions.close()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for connection in list(self._connections):
            connection.close()


def _may(link: socket.socket) -> bool:
    """Only the user whom the supervisor serves may ask (SO_PEERCRED, unix(7)).

    That user is 0 here: root itself, or a user who is root in the supervisor's user namespace,
    where the host's root is not mapped and may not ask.
    """
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", data)
    return uid in (0, os.geteuid())


class _Connection:
    def __init__(
        self, service: Service, link: socket.socket, gone: Callable[[_Connection], None]
    ) -> None:
        link.setblocking(False)
        self._service = service
        self._supervisor = service.supervisor
        self._link = link
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._runs: dict[int, tuple[Box, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.leaving: set[Callable[[], None]] = set()
        """What is to be done when this connection closes."""
        self._open = True
        self._loop.add_reader(link, self.heard)

    def heard(self) -> None:
        """Take one message; the loop calls again while more wait."""
        try:
            message, fds = wire.receive(self._link)
        except BlockingIOError:
            return
        except UsageError as e:
            self._reply(0, error=e)
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self.close()
        else:
            self._handle(message, fds)

    def close(self) -> None:
        """Let go of the client, and of its boxes."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._link)
        self._link.close()
        for box in list(self._supervisor.boxes.values()):
            if box.owner is self:
                box.kill()
        for box, number in list(self._runs.values()):
            box.kill_run(number)
        for leave in list(self.leaving):
            leave()
        self._gone(self)

    def _reply(
        self,
        n: int,
        ok: object = None,
        *,
        error: TeguError | None = None,
        fds: list[int] | None = None,
    ) -> None:
        if not self._open:
            return
        body: dict[str, Any] = {"n": n}
        if error is not None:
            body["error"] = wire.describe(error)
            number = getattr(error, "number", None)
            if number is not None:
                body["error"]["errno"] = number
        else:
            body["ok"] = ok
        try:
            wire.send(self._link, body, fds or [])
        except (OSError, UsageError):
            self.close()  # it does not read its answers

    def reply(self, n: int, ok: object = None, *, fds: _Fds | None = None) -> None:
        """Answer request `n`."""
        self._reply(n, ok, fds=fds)

    def _handle(self, message: dict[str, Any], fds: list[int]) -> None:
        n = message.get("n")
        number = n if isinstance(n, int) else 0
        try:
            op = _OPS.get(str(message.get("op")))
            if op is None:
                raise UsageError(f"there is no operation {message.get('op')!r}")
            later = op(self, number, message, fds)
        except TeguError as e:
            self._reply(number, error=e)
            _close(fds)
            return
        except (TypeError, ValueError) as e:
            self._reply(number, error=UsageError(f"{message.get('op')}: {e}"))
            _close(fds)
            return
        if later is None:
            _close(fds)
        else:
            task = self._loop.create_task(self._finish(number, later, fds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, number: int, later: Awaitable[None], fds: list[int]) -> None:
        try:
            await later
        except TeguError as e:
            self._reply(number, error=e)
        except OSError as e:
            what = f"{e.filename}: " if e.filename else ""
            self._reply(number, error=SandboxError(f"{what}{e.strerror or e}"))
        except Exception as e:
            self._reply(number, error=SandboxError(f"a fault of the supervisor: {e!r}"))
            raise  # to its log: nobody shall wait for an answer meanwhile
        finally:
            _close(fds)

    # Operations. Each answers by itself; one that returns an awaitable does so later.

    def once(self, n: int, message: dict[str, Any], fds: list[int]) -> Awaitable[None] | None:
        """Run one program in a new box, which ends with it."""
        spec = self._service.spec(message.get("box", {}))
        run = RunSpec.from_json(message.get("run"))
        _want_descriptors(fds)
        self._supervisor.check(spec)
        spec = self._supervisor.placed(spec)
        if not self._supervisor.prepared(spec) or spec.network != "none" or spec.publish:
            return self._once_later(n, spec, run, fds)
        box = self._supervisor.take(spec)
        box.owner = self
        if self._unborn(box, spec):
            return self._once_born(n, box, spec, run, fds)
        box.spec = spec
        self._become(n, box, run, fds)
        return None

    def _become(self, n: int, box: Box, run: RunSpec, fds: list[int]) -> None:
        pending = Pending(lambda answer: self._ended(n, answer))
        try:
            if box.spec.init:
                box.once(run, fds, pending)
            else:
                box.become(run, fds, pending)
        except TeguError:
            box.kill()
            raise

    async def _once_later(self, n: int, spec: BoxSpec, run: RunSpec, fds: list[int]) -> None:
        box = await self._new(spec)
        box.spec = spec
        if asks_written_names(spec):
            await self._settle(box)
            await point_at_resolver(box)
        self._become(n, box, run, fds)

    async def _once_born(
        self, n: int, box: Box, spec: BoxSpec, run: RunSpec, fds: list[int]
    ) -> None:
        await self._born(box, spec)
        box.spec = spec
        self._become(n, box, run, fds)

    async def _new(self, spec: BoxSpec) -> Box:
        """Return a new box of ours, under its limits."""
        await self._supervisor.prepare(spec)
        box = self._supervisor.take(spec)
        box.owner = self
        if self._unborn(box, spec):
            await self._born(box, spec)
        if spec.network != "none" or spec.publish:
            await self._connect(box, spec)
        if not self._open:
            box.kill()
        return box

    async def _connect(self, box: Box, spec: BoxSpec) -> None:
        """Give a new box its network and its ports, or end it."""
        born = asyncio.Event()
        box.when_born(born.set)
        await born.wait()
        networks = self._supervisor.networks()
        try:
            if spec.network != "none":
                await networks.attach(box, spec.network)
            for word in spec.publish:
                await networks.publish(box, parse_port(word))
        except BaseException:
            box.kill()
            raise

    def _unborn(self, box: Box, spec: BoxSpec) -> bool:
        """Put a box under its limits; true when it has no process yet that could be."""
        try:
            return self._supervisor.limit(box, spec)
        except OSError as e:
            box.kill()
            raise SandboxError(f"box {box.name}: its limits: {e.strerror or e}") from e
        except BaseException:
            box.kill()
            raise

    async def _born(self, box: Box, spec: BoxSpec) -> None:
        """Wait for a box's process, and put it under its limits."""
        born = asyncio.Event()
        box.when_born(born.set)
        await born.wait()
        if box.state == "dead":
            raise box.error or SandboxError("the box did not start")
        self._unborn(box, spec)
        if not self._open:
            box.kill()

    def _ended(self, n: int, answer: Answer) -> None:
        if isinstance(answer, SandboxError):
            self._reply(n, error=answer)
        elif isinstance(answer, Outcome):
            self._reply(n, answer.to_json())

    def create(self, n: int, message: dict[str, Any], _: list[int]) -> Awaitable[None]:
        """Make a box that lives on."""
        spec = BoxSpec.from_json(message.get("box", {}))
        if spec.snapshot:
            spec = self._supervisor.machines.restored(spec.snapshot, spec)
        self._supervisor.check(spec)
        spec = self._supervisor.placed(spec)
        return self._create(n, spec, keep=message.get("keep") is True)

    async def _create(self, n: int, spec: BoxSpec, *, keep: bool) -> None:
        box = await self._new(spec)
        box.spec = spec
        await self._settle(box)
        if asks_written_names(spec):
            await point_at_resolver(box)
        if keep:
            box.owner = None
        self._reply(n, {"box": box.name, "pid": box.pid})

    async def _settle(self, box: Box) -> None:
        settled: asyncio.Future[Answer] = self._loop.create_future()
        box.settle(Pending(settled.set_result))
        answer = await settled
        if isinstance(answer, SandboxError):
            raise answer

    def _box(self, message: dict[str, Any]) -> Box:
        name = message.get("box")
        box = self._supervisor.boxes.get(name) if isinstance(name, str) else None
        if box is None or box.state != "live":
            raise SandboxError(
                f"there is no box {name}", hint="it has ended; see `tegu sandbox list`"
            )
        return box

    def attach(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Find a box again."""
        self._reply(n, self._about(self._box(message)))

    def run(self, n: int, message: dict[str, Any], fds: list[int]) -> None:
        """Run a program in a living box; with `announce` its pid is told before its end."""
        run = RunSpec.from_json(message.get("run"))
        box = self._box(message)
        _want_descriptors(fds)

        def done(answer: Answer) -> None:
            self._runs.pop(n, None)
            self._ended(n, answer)

        pending = Pending(done)
        if message.get("announce") is True:
            pending.started = lambda pid: self._reply(n, {"started": pid})
        self._runs[n] = (box, box.run(run, fds, pending))

    def signal(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Send a signal to a run of this connection, or kill it with all that it left."""
        found = self._runs.get(message.get("run", 0))
        number = message.get("signal")
        if found is not None:
            if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 65:
                found[0].kill_run(found[1], number, everything=False)
            elif number is None:
                found[0].kill_run(found[1])
            else:
                raise UsageError(f"signal: {number!r} is no signal")
        self._reply(n, found is not None)

    def open(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Open a file of a box; the descriptor comes with the answer."""
        path, flags = _path(message), message.get("flags")
        if not isinstance(flags, int) or flags & ~_FLAGS:
            raise UsageError(f"flags: {flags!r} are not allowed")

        box = self._box(message)

        def done(answer: Answer) -> None:
            if isinstance(answer, list) and len(answer) == 1:
                # What a microVM has opened is a copy: see Files.
                self._reply(n, "copy" if box.spec.kind in KINDS else True, fds=answer)
            elif isinstance(answer, SandboxError):
                self._reply(n, error=_with_name(path, answer))
            else:
                self._reply(n, error=SandboxError(f"{path}: the box gave no descriptor"))
            if isinstance(answer, list):
                _close(answer)

        box.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, Pending(done))

    def socket(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Make a TCP socket in a box's network, to connect to what listens there."""

        def done(answer: Answer) -> None:
            if isinstance(answer, list) and len(answer) == 1:
                self._reply(n, True, fds=answer)
            else:
                self._reply(n, error=SandboxError("the box gave no socket"))
            if isinstance(answer, list):
                _close(answer)

        self._box(message).socket(Pending(done))

    def publish(self, n: int, message: dict[str, Any], _: list[int]) -> Awaitable[None]:
        """Let a port of the host lead to one of a box."""
        box = self._box(message)
        self._supervisor.check_ports(box.spec)
        port, host, address = (message.get(k) for k in ("port", "host_port", "address"))
        wanted = Published(port, host or 0, address or "127.0.0.1")  # type: ignore[arg-type]

        async def publish() -> None:
            opened = await self._supervisor.networks().publish(box, wanted)
            self._reply(n, opened.to_json())

        return publish()

    def withdraw(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Let nothing lead to a port of a box any more."""
        box, port = self._box(message), message.get("port")
        if not isinstance(port, int):
            raise UsageError(f"port: {port!r} is no port")
        self._reply(n, self._supervisor.networks().withdraw(box, port))

    def change(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """mkdir, remove, rename, commit (what was written to a copy), pause, resume."""
        op = str(message.get("op"))
        box = self._box(message)
        arguments = [] if op in ("pause", "resume") else [_path(message)]
        if op == "rename":
            arguments.append(_path(message, "to"))

        def done(answer: Answer) -> None:
            if isinstance(answer, SandboxError):
                what = arguments[0] if arguments else op
                self._reply(n, error=_with_name(what, answer))
                return
            if op in ("pause", "resume"):
                box.set_paused(op == "pause")
            self._reply(n, True)

        box.change(op, Pending(done), *arguments)

    def snapshot(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Save a box under a name; it goes on."""
        box, name = self._box(message), check_name(message.get("name"))
        if box.spec.kind not in KINDS:
            raise UnsupportedError(
                f"a snapshot of a {box.spec.kind}", hint="microvm and microvm-tcg can be saved"
            )

        def done(answer: Answer) -> None:
            if isinstance(answer, SandboxError):
                self._reply(n, error=SandboxError(f"snapshot {name}: {answer.message}"))
            else:
                self._reply(n, {"snapshot": name})

        box.change("snapshot", Pending(done), name)

    def snapshots(self, n: int, *_: object) -> None:
        """List what is saved."""
        self._reply(n, self._supervisor.machines.snapshots())

    def forget(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Remove a snapshot."""
        self._supervisor.machines.remove(check_name(message.get("name")))
        self._reply(n, True)

    def kill(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """End a box; answered when nothing is left of it."""
        box = self._box(message)
        box.when_dead(lambda: self._reply(n, True))
        box.kill()

    def timeout(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Let a box live for so many seconds from now, or without end."""
        box, seconds = self._box(message), message.get("seconds")
        box.live_for(None if seconds is None else BoxSpec(timeout=seconds).timeout)
        self._reply(n, True)

    def ended(self, n: int, message: dict[str, Any], _: list[int]) -> None:
        """Answered when a box has ended, with the reason, or None if it was told to."""
        box = self._box(message)
        box.when_dead(lambda: self._reply(n, {"reason": box.error.message if box.error else None}))

    def _about(self, box: Box) -> dict[str, Any]:
        usage = box.group.usage() if box.group is not None else {}
        return {
            "box": box.name,
            "pid": box.pid,
            "state": "paused" if box.paused else box.state,
            "seconds": round(time.time() - box.created, 3),
            "spec": {k: v for k, v in box.spec.to_json().items() if k != "env"},
            "usage": usage,
            **self._supervisor.reachable(box),
        }

    def list(self, n: int, *_: object) -> None:
        """List the boxes in use, and what the supervisor is doing."""
        boxes = [self._about(b) for b in self._supervisor.in_use()]
        self._reply(
            n,
            {
                "boxes": boxes[:200],
                "total": len(boxes),
                "ready": self._supervisor.ready(),
                "started": self._supervisor.started,
                "since": self._supervisor.since,
                "zygotes": self._supervisor.zygotes(),
            },
        )

    def doctor(self, n: int, *_: object) -> None:
        """Say what limits rest on here."""
        found = doctor.limits(self._supervisor.groups)
        found.append(doctor.launcher(there=self._supervisor.launcher is not None))
        found.append(doctor.network(self._supervisor.networks().why_not()))
        self._reply(n, [f.to_json() for f in found])

    def function(self, n: int, message: dict[str, Any], fds: _Fds) -> Awaitable[None] | None:
        """Functions: tegu.sandbox.fn.service."""
        return self._service.functions().answer(self, n, message, fds)

    def shutdown(self, n: int, *_: object) -> None:
        """End the supervisor, and every box with it."""
        self._reply(n, True)
        self._service.stop.set()


_FLAGS = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_EXCL | os.O_DIRECTORY
_OPS: dict[str, Callable[[_Connection, int, dict[str, Any], list[int]], Awaitable[None] | None]] = {
    "once": _Connection.once,
    "create": _Connection.create,
    "attach": _Connection.attach,
    "run": _Connection.run,
    "signal": _Connection.signal,
    "open": _Connection.open,
    "socket": _Connection.socket,
    "publish": _Connection.publish,
    "withdraw": _Connection.withdraw,
    "mkdir": _Connection.change,
    "remove": _Connection.change,
    "rename": _Connection.change,
    "timeout": _Connection.timeout,
    "ended": _Connection.ended,
    "commit": _Connection.change,
    "snapshot": _Connection.snapshot,
    "snapshots": _Connection.snapshots,
    "forget": _Connection.forget,
    "pause": _Connection.change,
    "resume": _Connection.change,
    "kill": _Connection.kill,
    "list": _Connection.list,
    "doctor": _Connection.doctor,
    "fn": _Connection.function,
    "shutdown": _Connection.shutdown,
}


def _path(message: dict[str, Any], what: str = "path") -> str:
    path = message.get(what)
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or len(path) > 4095:
        raise UsageError(f"{what}: {path!a} is not an absolute path")
    try:
        path.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{what}: {path!a} holds what is no character") from None
    return path


def _with_name(what: str, error: SandboxError) -> SandboxError:
    """Return an error that says what it is about."""
    message = f"{what}: {error.message}"
    if isinstance(error, RefusedError):
        return RefusedError(message, error.number)
    return SandboxError(message)


def _want_descriptors(fds: list[int]) -> None:
    if len(fds) < 3:
        raise UsageError("a run needs descriptors for stdin, stdout and stderr")
    for fd in fds:
        path_only = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH
        if path_only or stat.S_ISDIR(os.fstat(fd).st_mode):
            raise UsageError("a directory is no stream: a box could walk the host from there")


def _close(fds: list[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
