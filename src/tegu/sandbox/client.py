"""Sandboxes for programs: `Sandbox`, and `run` for a single command."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tegu.errors import SandboxError
from tegu.linux import openat
from tegu.sandbox import wire
from tegu.sandbox.exchange import MAX_OUTPUT, Exchange, Output, secret_file
from tegu.sandbox.launch import connect
from tegu.sandbox.spec import BoxSpec, Limits, RunSpec, parse_size

__all__ = [
    "Command",
    "Entry",
    "Files",
    "Ports",
    "Process",
    "Result",
    "Sandbox",
    "as_result",
    "box_spec",
    "checked_file",
    "entries",
    "listed",
    "run",
    "run_spec",
    "secret_files",
    "supervisor",
]

Command = str | Sequence[str]


@dataclass(frozen=True)
class Result:
    """How a program ended. `exit_code` is 128 + N when signal N killed it (`signal`).

    `timed_out` says that its timeout killed it, `out_of_memory` that its memory limit did.
    `truncated` says that there was more output than was to be kept (`max_output`).
    `seconds` is wall time, `user` and `system` are CPU seconds with those of its children,
    `max_rss` bytes of its largest process.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    signal: int = 0
    timed_out: bool = False
    out_of_memory: bool = False
    seconds: float = 0.0
    user: float = 0.0
    system: float = 0.0
    max_rss: int = 0
    truncated: bool = False

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Result:
        """Return itself, or raise SandboxError when the program did not end with 0."""
        if self.exit_code == 0:
            return self
        if self.timed_out:
            how = f"reached its timeout after {self.seconds:.1f} s: everything of it was killed"
        elif self.out_of_memory:
            how = "was killed at its memory limit"
        elif self.signal:
            how = f"was killed by signal {self.signal}"
        else:
            how = f"exited with {self.exit_code}"
        tail = "; ".join(self.stderr.decode(errors="replace").strip().splitlines()[-3:])
        raise SandboxError(f"the program {how}" + (f": {tail}" if tail else ""))


def box_spec(
    template: str = "host",
    *,
    kind: str = "container",
    memory: int | str | None = None,
    cpus: float | None = None,
    pids: int = 512,
    files: int = 1024,
    disk: int | str = "256M",
    timeout: float | None = None,
    read_only: bool = False,
    hostname: str = "box",
    init: bool = True,
    snapshot: str = "",
    network: str | Sequence[str] = "none",
    publish: Sequence[str] = (),
) -> BoxSpec:
    """Return a checked description of a box; raises UsageError that names the field.

    `template` is "host", a directory's absolute path, or the name of an image's template.
    """
    image = None
    if template != "host" and "/" not in template:
        from tegu.sandbox.images import find_image

        image = find_image(template)
    limits = Limits(
        memory=None if memory is None else parse_size(memory, "memory"),
        cpus=cpus,
        pids=pids,
        files=files,
        disk=parse_size(disk, "disk"),
    )
    rest = (timeout, read_only, hostname, init, snapshot, network, publish)
    spec = BoxSpec(str(image.root) if image else template, kind, limits, *rest)
    if image is None:
        return spec
    user = "" if kind == "process" else image.user
    return replace(spec, env=image.env, cwd=image.cwd, user=user)


def run_spec(
    command: Command,
    env: Mapping[str, str] | None,
    cwd: str,
    timeout: float | None,
    secrets: Mapping[str, bytes] | None,
    user: str = "",
) -> RunSpec:
    """Return a checked description of a run; a command given as one string goes to /bin/sh.

    Secret number N is descriptor 3 + N, and the variable of its name says "/proc/self/fd/3" ...
    """
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    names = {name: f"/proc/self/fd/{3 + i}" for i, name in enumerate(secrets or {})}
    if len(names) > 32:
        raise SandboxError(f"{len(names)} secrets are more than 32")
    return RunSpec(argv, {**(env or {}), **names}, cwd, timeout, user)


def as_result(answer: Mapping[str, Any], out: Output) -> Result:
    """Return the supervisor's answer and the collected output as a Result."""
    rest = {k: v for k, v in answer.items() if k != "code"}
    return Result(
        exit_code=int(answer["code"]),
        stdout=bytes(out.stdout),
        stderr=bytes(out.stderr),
        truncated=out.truncated,
        **rest,
    )


@contextmanager
def secret_files(secrets: Mapping[str, bytes] | None) -> Iterator[list[int]]:
    """Yield descriptors that hold the secrets; they are closed here when the block ends."""
    fds: list[int] = []
    try:
        for value in (secrets or {}).values():
            fds.append(secret_file(value))  # noqa: PERF401 - each must be closed if the next fails
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _converse(
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
    link = connect(path, start=start)
    try:
        with secret_files(secrets) as fds:
            exchange = Exchange(link, request, data=raw, heard=out.heard, secrets=fds)
    except BaseException:
        link.close()
        raise
    return as_result(exchange.wait(), out)


def run(
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
    """Run one command in a new box that ends with it; by default nothing of a pool is wasted.

    `timeout` seconds after its start everything in the box is killed, and the result says so. Of
    each output `max_output` bytes are kept; `Sandbox.start` streams without end.
    Raises SandboxError when it cannot start, UnsupportedError when the host cannot do it.
    """
    spec = run_spec(command, env, cwd, timeout, secrets, user)
    request = {"op": "once", "box": (box or BoxSpec()).to_json(), "run": spec.to_json()}
    return _converse(path, request, stdin, secrets, start=True, max_output=max_output)


@dataclass(frozen=True)
class Entry:
    """A directory's entry: `kind` is file, directory, link or other; `size` in bytes."""

    name: str
    kind: str
    size: int
    mode: int


class _Talk:
    """A connection for requests with one answer each."""

    def __init__(self, path: Path | None, *, start: bool) -> None:
        self._link = connect(path, start=start)
        self._n = 0

    def ask(self, op: str, **fields: Any) -> Any:
        """Ask, and return the answer; raises the error it may be."""
        answer, fds = self.ask_fd(op, **fields)
        for fd in fds:
            os.close(fd)
        return answer

    def ask_fd(self, op: str, **fields: Any) -> tuple[Any, list[int]]:
        """As `ask`, with the descriptors that come with the answer."""
        self._n += 1
        try:
            wire.send(self._link, {"op": op, "n": self._n, **fields})
            while True:
                message, fds = wire.receive(self._link)
                if message is None:
                    raise SandboxError("the supervisor has ended", hint="its boxes ended with it")
                if message.get("n") == self._n:
                    break
        except OSError as e:
            raise SandboxError("the supervisor has ended", hint="its boxes ended with it") from e
        if "error" in message:
            raise wire.to_error(message["error"])
        return message["ok"], fds

    def close(self) -> None:
        """Close the connection; boxes that it made and that are not kept end."""
        self._link.close()


def supervisor(op: str, *, path: Path | None = None, start: bool = False, **fields: Any) -> Any:
    """Ask the supervisor itself ("list", "doctor", "shutdown", "kill") and return its answer."""
    talk = _Talk(path, start=start)
    try:
        return talk.ask(op, **fields)
    finally:
        talk.close()


MAX_READ = 256 * 2**20
"""Bytes that a read of a box's file returns at most unless told otherwise."""


class Files:
    """Files of a box. Paths are absolute and are followed as the box sees them, by the box.

    So links lead nowhere but into the box, whatever it does meanwhile.
    """

    def __init__(self, talk: _Talk, name: str) -> None:
        self._talk = talk
        self._name = name

    def _open(self, path: str, flags: int) -> tuple[int, bool]:
        """Return a descriptor, and whether it is of a copy: a microVM's files are not ours."""
        answer, fds = self._talk.ask_fd("open", box=self._name, path=path, flags=flags)
        for extra in fds[1:]:
            os.close(extra)
        if not fds:
            raise SandboxError(f"{path}: the box gave no descriptor")
        directory = bool(flags & os.O_DIRECTORY) and answer != "copy"
        return checked_file(fds[0], path, directory=directory), answer == "copy"

    def read(self, path: str, *, max_bytes: int = MAX_READ) -> bytes:
        """Return a regular file's content; SandboxError when it is more than `max_bytes`."""
        fd, _ = self._open(path, os.O_RDONLY)
        return read_file(fd, path, max_bytes)

    def write(self, path: str, data: bytes | str) -> None:
        """Write a file, made if it is not there (its directory must be), replaced if it is."""
        fd, copy = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data.encode() if isinstance(data, str) else data)
        except OSError as e:
            raise SandboxError(f"{path}: {e.strerror}") from e
        if copy:
            self._talk.ask("commit", box=self._name, path=path)

    def list(self, path: str = "/") -> list[Entry]:
        """Return a directory's entries, sorted by name."""
        fd, copy = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return listed(fd) if copy else entries(fd)
        finally:
            os.close(fd)

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        self._talk.ask("mkdir", box=self._name, path=path)

    def remove(self, path: str) -> None:
        """Remove a file, a link or an empty directory."""
        self._talk.ask("remove", box=self._name, path=path)


class Ports:
    """Ports of a box that ports of this host lead to, for as long as the box lives."""

    def __init__(self, talk: _Talk, name: str) -> None:
        self._talk = talk
        self._name = name

    def open(self, port: int, *, host_port: int = 0, address: str = "127.0.0.1") -> int:
        """Let a port of this host (0: any that is free) lead to one of the box; returns it.

        What listens in the box does so at 127.0.0.1 or 0.0.0.0. Raises SandboxError.
        """
        fields = {"port": port, "host_port": host_port, "address": address}
        return int(self._talk.ask("publish", box=self._name, **fields)["host_port"])

    def close(self, port: int) -> None:
        """Let nothing lead to a port of the box any more."""
        self._talk.ask("withdraw", box=self._name, port=port)

    def list(self) -> list[dict[str, Any]]:
        """Return what is open, each with `address`, `host_port` and `port`."""
        found: list[dict[str, Any]] = self._talk.ask("attach", box=self._name).get("ports", [])
        return found


def checked_file(fd: int, path: str, *, directory: bool) -> int:
    """Return what a box opened, if it is a directory or a regular file as wanted.

    Files of /proc and /sys are no files to copy: reading and writing them acts on the kernel, with
    the rights of whoever does it, which here is not the box. They are closed and refused.
    """
    wanted = stat.S_ISDIR if directory else stat.S_ISREG
    try:
        right = wanted(os.fstat(fd).st_mode) and (directory or not openat.on_kernel_files(fd))
    except OSError:
        right = False
    if not right:
        os.close(fd)
        raise SandboxError(f"{path}: not a {'directory' if directory else 'regular file'}")
    return fd


def read_file(fd: int, path: str, most: int) -> bytes:
    """Return what is in an open file of a box, and close it; a sparse one may claim any size."""
    try:
        with os.fdopen(fd, "rb") as f:
            data = f.read(most + 1) if os.fstat(fd).st_size <= most else None
    except OSError as e:
        raise SandboxError(f"{path}: {e.strerror}") from e
    if data is None or len(data) > most:
        raise SandboxError(f"{path}: more than {most} bytes", hint="say max_bytes to read more")
    return data


def entries(directory: int) -> list[Entry]:
    """Return the entries of an open directory, sorted by name."""
    found = []
    for name in sorted(os.listdir(directory)):
        try:
            found.append(_entry(name, os.stat(name, dir_fd=directory, follow_symlinks=False)))
        except FileNotFoundError:
            continue  # it went away meanwhile
    return found


def listed(file: int) -> list[Entry]:
    """Return the entries that a microVM wrote down (guest.c): "MODE SIZE NAME", NUL after each."""
    with open(file, "rb", closefd=False) as f:
        lines = f.read().split(b"\0")[:-1]
    found = []
    for line in lines:
        mode, _, rest = line.partition(b" ")
        size, _, name = rest.partition(b" ")
        try:
            about = os.stat_result((int(mode, 8), 0, 0, 0, 0, 0, int(size), 0, 0, 0))
        except ValueError:
            raise SandboxError("the virtual machine talks nonsense") from None
        found.append(_entry(os.fsdecode(name), about))
    return sorted(found, key=lambda e: e.name)


def _entry(name: str, about: os.stat_result) -> Entry:
    mode = about.st_mode
    kind = "other"
    for test, word in ((stat.S_ISREG, "file"), (stat.S_ISDIR, "directory"), (stat.S_ISLNK, "link")):
        if test(mode):
            kind = word
    return Entry(name, kind, about.st_size, stat.S_IMODE(mode))


class Process:
    """A program that runs in a box; its output comes as it is written."""

    def __init__(self, link: socket.socket, request: Mapping[str, Any], secrets: list[int]) -> None:
        self._chunks: list[tuple[str, bytes]] = []
        self._link = link
        self._exchange = Exchange(
            link,
            request,
            data=None,
            heard=lambda name, data: self._chunks.append((name, data)),
            secrets=secrets,
            feed=True,
        )

    def write(self, data: bytes | str) -> None:
        """Send to its standard input (while `output` or `wait` runs)."""
        self._exchange.write(data.encode() if isinstance(data, str) else data)

    def close_stdin(self) -> None:
        """End its standard input."""
        self._exchange.end_input()

    def output(self) -> Iterator[tuple[str, bytes]]:
        """Yield ("stdout" | "stderr", data) as it comes, until the program ends."""
        import selectors

        while True:
            while self._chunks:
                yield self._chunks.pop(0)
            if self._exchange.done:
                return
            with selectors.DefaultSelector() as selector:
                for fd in self._exchange.readers():
                    selector.register(fd, selectors.EVENT_READ)
                for fd in self._exchange.writers():
                    selector.register(fd, selectors.EVENT_WRITE)
                for key, events in selector.select():
                    if events & selectors.EVENT_WRITE and key.fd == self._exchange.stdin:
                        self._exchange.writable(key.fd)
                    elif events & selectors.EVENT_READ:
                        self._exchange.readable(key.fd)

    def wait(self, *, max_output: int = MAX_OUTPUT) -> Result:
        """Wait for its end; what `output` has not yielded yet is in the result."""
        out = Output(max_output)
        self._exchange.end_input()
        try:
            for name, data in self.output():
                out.heard(name, data)
            return as_result(self._exchange.result(), out)
        finally:
            self._exchange.close()

    def signal(self, number: int) -> None:
        """Send a signal to the program."""
        self._send({"op": "signal", "n": 2, "run": 1, "signal": number})

    def kill(self) -> None:
        """Kill the program and everything that it started."""
        self._send({"op": "signal", "n": 2, "run": 1, "signal": None})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            wire.send(self._link, message)
        except OSError as e:
            raise SandboxError("the program has ended") from e


class Sandbox:
    """A box that lives until it is closed, its timeout is reached, or this process ends.

    with Sandbox.create(memory="256M", timeout=60) as box:
        print(box.run("python3 -c 'print(1+1)'").text)
    """

    def __init__(self, talk: _Talk, name: str, path: Path | None, env: Mapping[str, str]) -> None:
        self.name = name
        self.files = Files(talk, name)
        self.ports = Ports(talk, name)
        self._talk = talk
        self._path = path
        self._env = dict(env)

    @classmethod
    def create(
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
        snapshot: str = "",
        network: str | Sequence[str] = "none",
        publish: Sequence[str] = (),
        path: Path | None = None,
    ) -> Sandbox:
        """Start a box. It has no network but loopback, unless `network` says what it may reach:
        "full", or a list of names, addresses and ports: ["deb.example.org", "10.0.0.0/8:443"].

        `publish` lets ports of this host lead to ports of the box ("8080:8000"); see `ports`.

        With the name of a `snapshot` it goes on where that was made, with its class, limits and
        template; `timeout` and `hostname` are its own, and so are random state, ids and clock.

        `template` is "host", a directory with a root file system, or the name of a template made of
        an image, which says what its programs begin with; `memory` and `disk` are bytes
        or "256M"; `cpus` processors; `timeout` the seconds it lives at most; `env` variables of
        all its programs. With `keep` it outlives this process: see `attach`. Raises UsageError,
        UnsupportedError (a limit or class this host cannot give) or SandboxError.
        """
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
            snapshot=snapshot,
            network=network,
            publish=publish,
        )
        talk = _Talk(path, start=True)
        try:
            answer = talk.ask("create", box=spec.to_json(), keep=keep)
        except BaseException:
            talk.close()
            raise
        return cls(talk, answer["box"], path, env or {})

    @classmethod
    def attach(
        cls, name: str, *, env: Mapping[str, str] | None = None, path: Path | None = None
    ) -> Sandbox:
        """Return a box that was made with `keep`, by its name."""
        talk = _Talk(path, start=False)
        try:
            talk.ask("attach", box=name)
        except BaseException:
            talk.close()
            raise
        return cls(talk, name, path, env or {})

    def _request(
        self,
        command: Command,
        env: Mapping[str, str] | None,
        cwd: str,
        timeout: float | None,
        secrets: Mapping[str, bytes] | None,
        user: str,
    ) -> dict[str, Any]:
        spec = run_spec(command, {**self._env, **(env or {})}, cwd, timeout, secrets, user)
        return {"op": "run", "box": self.name, "run": spec.to_json()}

    def run(
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
        """Run a program to its end; a string goes to /bin/sh.

        After `timeout` seconds it is killed with all that it left, and the result says so. Of each
        output `max_output` bytes are kept; `start` streams without end.

        Raises SandboxError when it cannot start, or the box has ended.
        """
        request = self._request(command, env, cwd, timeout, secrets, user)
        return _converse(self._path, request, stdin, secrets, start=False, max_output=max_output)

    def start(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
        secrets: Mapping[str, bytes] | None = None,
    ) -> Process:
        """Start a program and return at once."""
        request = self._request(command, env, cwd, timeout, secrets, user)
        link = connect(self._path, start=False)
        try:
            with secret_files(secrets) as fds:
                return Process(link, request, fds)
        except BaseException:
            link.close()
            raise

    def pause(self) -> None:
        """Stop every program in the box where it stands."""
        self._talk.ask("pause", box=self.name)

    def resume(self) -> None:
        """Let the programs go on."""
        self._talk.ask("resume", box=self.name)

    def snapshot(self, name: str) -> None:
        """Save memory and disk of a microVM under a name: see `create`. The box goes on."""
        self._talk.ask("snapshot", box=self.name, name=name)

    def fork(self, *, keep: bool = False) -> Sandbox:
        """Return a new box that goes on from where this one is, with an identity of its own."""
        import secrets

        name = f"fork-{secrets.token_hex(8)}"
        self.snapshot(name)
        try:
            return Sandbox.create(snapshot=name, env=self._env, keep=keep, path=self._path)
        finally:
            self._talk.ask("forget", name=name)

    def info(self) -> dict[str, Any]:
        """Return the box's state, age in seconds, description, and usage where it is accounted."""
        about: dict[str, Any] = self._talk.ask("attach", box=self.name)
        return about

    def kill(self) -> None:
        """End the box with everything in it."""
        self._talk.ask("kill", box=self.name)

    def close(self) -> None:
        """Let go of the box; unless it is kept, it ends."""
        self._talk.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
