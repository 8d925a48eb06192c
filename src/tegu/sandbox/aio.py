"""The asyncio twin of `Sandbox`: the same names, awaited; no threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tegu.errors import SandboxError
from tegu.sandbox import wire
from tegu.sandbox.client import (
    MAX_READ,
    Command,
    Entry,
    Result,
    as_result,
    box_spec,
    checked_file,
    entries,
    listed,
    read_file,
    run_spec,
    secret_files,
)
from tegu.sandbox.exchange import MAX_OUTPUT, Exchange, Output
from tegu.sandbox.launch import connect
from tegu.sandbox.spec import BoxSpec

__all__ = ["AsyncFiles", "AsyncPorts", "AsyncSandbox", "run"]


async def _drive(exchange: Exchange) -> dict[str, Any]:
    """Serve an exchange from the event loop until it is done; cancelling kills the program."""
    loop = asyncio.get_running_loop()
    reading: set[int] = set()
    writing: set[int] = set()
    finished = asyncio.Event()

    def watch(readers: set[int], writers: set[int]) -> None:
        nonlocal reading, writing
        for fd in reading - readers:
            loop.remove_reader(fd)
        for fd in writing - writers:
            loop.remove_writer(fd)
        for fd in readers - reading:
            loop.add_reader(fd, serve, exchange.readable, fd)
        for fd in writers - writing:
            loop.add_writer(fd, serve, exchange.writable, fd)
        reading, writing = readers, writers

    def serve(call: Callable[[int], None], fd: int) -> None:
        call(fd)
        # At once: a descriptor that was closed may be another exchange's with the next turn.
        watch(set(exchange.readers()), set(exchange.writers()))
        if exchange.done:
            finished.set()

    try:
        watch(set(exchange.readers()), set(exchange.writers()))
        await finished.wait()
    finally:
        watch(set(), set())
        exchange.close()
    return exchange.result()


async def _converse(
    path: Path | None,
    request: Mapping[str, Any],
    data: bytes | str | None,
    secrets: Mapping[str, bytes] | None,
    *,
    start: bool,
    max_output: int,
) -> Result:
    out = Output(max_output)
    raw = data.encode() if isinstance(data, str) else data
    link = await asyncio.to_thread(connect, path, start=start)
    try:
        with secret_files(secrets) as fds:
            exchange = Exchange(link, request, data=raw, heard=out.heard, secrets=fds)
    except BaseException:
        link.close()
        raise
    return as_result(await _drive(exchange), out)


async def run(
    command: Command,
    *,
    box: BoxSpec | None = None,
    stdin: bytes | str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    timeout: float | None = None,
    secrets: Mapping[str, bytes] | None = None,
    max_output: int = MAX_OUTPUT,
    path: Path | None = None,
) -> Result:
    """Run one command in a new box that ends with it (`tegu.sandbox.run`)."""
    spec = run_spec(command, env, cwd, timeout, secrets, user)
    request = {"op": "once", "box": (box or BoxSpec()).to_json(), "run": spec.to_json()}
    return await _converse(path, request, stdin, secrets, start=True, max_output=max_output)


class _Talk:
    """A connection for requests with one answer each, many at a time."""

    def __init__(self, path: Path | None, *, start: bool) -> None:
        self._link = connect(path, start=start)
        self._link.setblocking(False)
        self._n = 0
        self._waiting: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._link, self._heard)

    def _heard(self) -> None:
        try:
            message, fds = wire.receive(self._link)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self.close()
            return
        future = self._waiting.pop(message.get("n", 0), None)
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
        elif "error" in message:
            future.set_exception(wire.to_error(message["error"]))
        else:
            future.set_result((message["ok"], fds))

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
        try:
            wire.send(self._link, {"op": op, "n": self._n, **fields})
        except OSError as e:
            raise SandboxError("the supervisor has ended", hint="its boxes ended with it") from e
        return await future

    def close(self) -> None:
        """Close the connection; boxes that it made and that are not kept end."""
        if self._link.fileno() < 0:
            return
        self._loop.remove_reader(self._link)
        self._link.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(SandboxError("the supervisor has ended"))


class AsyncFiles:
    """Files of a box (`Files`). Reading and writing the box's memory does not wait for disks."""

    def __init__(self, talk: _Talk, name: str) -> None:
        self._talk = talk
        self._name = name

    async def _open(self, path: str, flags: int) -> tuple[int, bool]:
        answer, fds = await self._talk.ask_fd("open", box=self._name, path=path, flags=flags)
        for extra in fds[1:]:
            os.close(extra)
        if not fds:
            raise SandboxError(f"{path}: the box gave no descriptor")
        directory = bool(flags & os.O_DIRECTORY) and answer != "copy"
        return checked_file(fds[0], path, directory=directory), answer == "copy"

    async def read(self, path: str, *, max_bytes: int = MAX_READ) -> bytes:
        """Return a regular file's content; SandboxError when it is more than `max_bytes`."""
        fd, _ = await self._open(path, os.O_RDONLY)
        return read_file(fd, path, max_bytes)

    async def write(self, path: str, data: bytes | str) -> None:
        """Write a file, made or replaced."""
        fd, copy = await self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data.encode() if isinstance(data, str) else data)
        except OSError as e:
            raise SandboxError(f"{path}: {e.strerror}") from e
        if copy:
            await self._talk.ask("commit", box=self._name, path=path)

    async def list(self, path: str = "/") -> list[Entry]:
        """Return a directory's entries, sorted by name."""
        fd, copy = await self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return listed(fd) if copy else entries(fd)
        finally:
            os.close(fd)

    async def mkdir(self, path: str) -> None:
        """Make a directory."""
        await self._talk.ask("mkdir", box=self._name, path=path)

    async def remove(self, path: str) -> None:
        """Remove a file, a link or an empty directory."""
        await self._talk.ask("remove", box=self._name, path=path)


class AsyncPorts:
    """Ports of a box (`Ports`)."""

    def __init__(self, talk: _Talk, name: str) -> None:
        self._talk = talk
        self._name = name

    async def open(self, port: int, *, host_port: int = 0, address: str = "127.0.0.1") -> int:
        """Let a port of this host (0: any that is free) lead to one of the box; returns it."""
        fields = {"port": port, "host_port": host_port, "address": address}
        return int((await self._talk.ask("publish", box=self._name, **fields))["host_port"])

    async def close(self, port: int) -> None:
        """Let nothing lead to a port of the box any more."""
        await self._talk.ask("withdraw", box=self._name, port=port)

    async def list(self) -> list[dict[str, Any]]:
        """Return what is open, each with `address`, `host_port` and `port`."""
        about = await self._talk.ask("attach", box=self._name)
        found: list[dict[str, Any]] = about.get("ports", [])
        return found


class AsyncSandbox:
    """A box (`Sandbox`).

    async with await AsyncSandbox.create(timeout=60) as box:
        print((await box.run("id")).text)
    """

    def __init__(self, talk: _Talk, name: str, path: Path | None, env: Mapping[str, str]) -> None:
        self.name = name
        self.files = AsyncFiles(talk, name)
        self.ports = AsyncPorts(talk, name)
        self._talk = talk
        self._path = path
        self._env = dict(env)

    @classmethod
    async def create(
        cls,
        template: str = "host",
        *,
        kind: str = "container",
        memory: int | str | None = None,
        cpus: float | None = None,
        pids: int = 512,
        files: int = 1024,
        disk: int | str = "256M",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        read_only: bool = False,
        hostname: str = "box",
        keep: bool = False,
        network: str | Sequence[str] = "none",
        publish: Sequence[str] = (),
        path: Path | None = None,
    ) -> AsyncSandbox:
        """Start a box; the arguments are those of `Sandbox.create`."""
        spec = box_spec(
            template,
            kind=kind,
            memory=memory,
            cpus=cpus,
            pids=pids,
            files=files,
            disk=disk,
            timeout=timeout,
            read_only=read_only,
            hostname=hostname,
            network=network,
            publish=publish,
        )
        (await asyncio.to_thread(connect, path)).close()  # starts a supervisor if there is none
        talk = _Talk(path, start=False)
        try:
            answer = await talk.ask("create", box=spec.to_json(), keep=keep)
        except BaseException:
            talk.close()
            raise
        return cls(talk, answer["box"], path, env or {})

    @classmethod
    async def attach(
        cls, name: str, *, env: Mapping[str, str] | None = None, path: Path | None = None
    ) -> AsyncSandbox:
        """Return a box that was made with `keep`, by its name."""
        talk = _Talk(path, start=False)
        try:
            await talk.ask("attach", box=name)
        except BaseException:
            talk.close()
            raise
        return cls(talk, name, path, env or {})

    async def run(
        self,
        command: Command,
        *,
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
        secrets: Mapping[str, bytes] | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Result:
        """Run a program to its end (`Sandbox.run`); cancelling kills it with all that it left."""
        spec = run_spec(command, {**self._env, **(env or {})}, cwd, timeout, secrets, user)
        request = {"op": "run", "box": self.name, "run": spec.to_json()}
        return await _converse(
            self._path, request, stdin, secrets, start=False, max_output=max_output
        )

    async def pause(self) -> None:
        """Stop every program in the box where it stands."""
        await self._talk.ask("pause", box=self.name)

    async def resume(self) -> None:
        """Let the programs go on."""
        await self._talk.ask("resume", box=self.name)

    async def info(self) -> dict[str, Any]:
        """Return the box's state, age in seconds, description, and usage where it is accounted."""
        about: dict[str, Any] = await self._talk.ask("attach", box=self.name)
        return about

    async def kill(self) -> None:
        """End the box with everything in it."""
        await self._talk.ask("kill", box=self.name)

    def close(self) -> None:
        """Let go of the box; unless it is kept, it ends."""
        self._talk.close()

    async def __aenter__(self) -> AsyncSandbox:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
