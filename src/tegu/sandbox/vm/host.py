"""The process of one microVM on the host: to the supervisor it is what a container's first process
is, with the same orders on the same socket (tegu.sandbox.box), and it carries them to the guest.

It begins when the first order comes, so that it is under its limits before QEMU is. QEMU ends with
it, and what it writes has no name in any directory: a box that is killed leaves nothing.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError, TeguError
from tegu.linux import libc
from tegu.sandbox import wireless
from tegu.sandbox.spec import BoxSpec
from tegu.sandbox.state import appear, need_room, scratch_file
from tegu.sandbox.vm import snapshots
from tegu.sandbox.vm.channel import CHUNK, WINDOW, Frames
from tegu.sandbox.vm.driver import Machine, RunningVm
from tegu.sandbox.vm.drivers import driver_for
from tegu.sandbox.vm.guest import identity

__all__ = ["main"]

_MAX_FILE = 256 * 2**20
_MAX_LISTING = 64 * 2**20
_AT_ONCE = 4096  # PIPE_BUF: a pipe that poll(2) calls writable takes it whole
_WAKE = 60.0
_MARGIN = 4 * 2**20


class _Run:
    """A program in the guest, or the moving of a file: streams, and what to say at its end."""

    def __init__(self, number: str, fds: list[int]) -> None:
        self.number = number
        self.stdin = fds[0] if fds else -1
        self.outputs = {"o": fds[1], "e": fds[2]} if fds else {"o": -1, "e": -1}
        self.waiting = {"o": bytearray(), "e": bytearray()}
        self.owed = {"o": 0, "e": 0}
        """Credit that the guest has not been given back."""
        self.room = WINDOW
        """Bytes of input that the guest takes."""
        self.end: list[str] | None = None
        self.collected: bytearray | None = None
        self.limit = 0
        self.finish: Callable[[_Run], None] | None = None

    def close(self) -> None:
        for fd in (self.stdin, *self.outputs.values()):
            if fd >= 0:
                os.close(fd)
        self.stdin = -1
        self.outputs = {"o": -1, "e": -1}


class _Host:
    def __init__(self, link: socket.socket, spec: BoxSpec, source: Path, state: Path) -> None:
        self.link = link
        self.spec = spec
        self.source = source
        self.state = state
        self.machine: Machine
        self.vm: RunningVm
        self.frames: Frames
        self.disk = -1
        self.once = False
        self.runs: dict[int, _Run] = {}
        self.writes: dict[str, int] = {}
        self.last = 0
        self.paused = False

    # Starting.

    def start(self) -> None:
        """Restore the guest and give it an identity of its own."""
        name = self.source.name
        try:
            body = snapshots.read_manifest(self.source, name)
            snapshots.verify_once(self.source, name, body)
        except SandboxError as e:
            if self.spec.snapshot:
                raise
            # Nobody's data: the next start makes it anew.
            with suppress(OSError):
                (self.source / "manifest.json").unlink()
            raise SandboxError(f"what was kept of this template is unusable: {e.message}") from e
        self.machine = Machine(**body["machine"])
        self.last = int(body.get("runs", 0))  # numbers of programs that may still run
        driver = driver_for(self.spec.kind, self.state)
        ours = (driver.name, driver.version, driver.accelerator)
        theirs = (self.machine.driver, self.machine.version, self.machine.accelerator)
        if ours != theirs:
            raise SandboxError(
                f"snapshot {name} is of {' '.join(theirs)}; this host has {' '.join(ours)}",
                hint="make it anew here",
            )
        self.disk = scratch_file(self.state)
        saved = os.open(self.source / "disk", os.O_RDONLY | os.O_CLOEXEC)
        try:
            snapshots.copy_sparse(saved, self.disk)
        finally:
            os.close(saved)
        self.driver = driver
        self.vm = driver.restore(self.machine, self.source, self.disk)
        self.frames = Frames(self.vm.channel)
        self.wake()

    def wake(self) -> None:
        """Let the guest go on as one of its own; no program in it runs before that."""
        limits = self.spec.limits
        self.frames.send("T", 0, identity(self.spec.hostname, limits.pids, limits.files))
        self.answer("T", time.monotonic() + _WAKE)

    def answer(self, wanted: str, deadline: float) -> None:
        """Serve the guest until it says `wanted`."""
        while True:
            left = deadline - time.monotonic()
            watched = [self.frames.fileno(), self.vm.watched()]
            ready, _, _ = select.select(watched, [], [], max(0.0, left))
            if not ready:
                raise SandboxError("the guest does not answer")
            if self.vm.watched() in ready:
                self.vm.check()
            self.frames.flush()
            for kind, number, data in self.frames.receive():
                if kind == wanted and number == 0:
                    return
                if kind == "f" and number == 0:
                    raise SandboxError(f"the guest refused: {_reason(data)[1]}")
                self.heard(kind, number, data)

    # Serving.

    def serve(self) -> None:
        """Carry orders and streams until the supervisor lets go."""
        while True:
            poll = select.poll()
            poll.register(self.link, select.POLLIN)
            poll.register(self.vm.watched(), select.POLLIN)
            out = select.POLLOUT if self.frames.unsent else 0
            poll.register(self.frames.fileno(), select.POLLIN | out)
            places: dict[int, tuple[_Run, str]] = {}
            for run in self.runs.values():
                if run.stdin >= 0 and run.room >= CHUNK:
                    places[run.stdin] = (run, "i")
                    poll.register(run.stdin, select.POLLIN)
                for name, fd in run.outputs.items():
                    if fd >= 0 and run.waiting[name]:
                        places[fd] = (run, name)
                        poll.register(fd, select.POLLOUT)
            for fd, _ in poll.poll():
                if fd == self.link.fileno():
                    data, fds = wireless.receive(self.link)
                    if not data:
                        return
                    self.obey(wireless.split(data), fds)
                elif fd == self.vm.watched():
                    self.vm.check()
                elif fd == self.frames.fileno():
                    self.frames.flush()
                    for frame in self.frames.receive():
                        self.heard(*frame)
                elif fd in places:
                    run, name = places[fd]
                    if name == "i":
                        self.feed(run)
                    else:
                        self.pour(run, name)
            self.conclude()

    def obey(self, words: list[str], fds: list[int]) -> None:
        """Carry out one order of the supervisor."""
        op, number = words[0], words[1]
        try:
            if op in ("run", "once"):
                self.once = op == "once"
                self.run(number, words, fds)
                fds = []
            elif op == "kill":
                self.kill(number, int(words[2]), everything=words[3] == "1")
            elif op == "open":
                self.open(number, words[2], int(words[3]))
            elif op == "commit":
                self.commit(number, words[2])
            elif op in ("mkdir", "remove"):
                self.order("M" if op == "mkdir" else "D", number, words[2], _plain(self.link))
            elif op in ("pause", "resume"):
                self.hold(stop=op == "pause")
                wireless.tell(self.link, "done", number)
            elif op == "snapshot":
                self.snapshot(words[2])
                wireless.tell(self.link, "done", number)
            else:
                raise OSError(errno.ENOSYS, f"no such order: {op}")
        except OSError as e:
            said = (str(e.errno or 0), e.strerror or str(e))
            wireless.tell(self.link, "failed", number, *said)
        except SandboxError as e:
            wireless.tell(self.link, "failed", number, "0", e.message)
        finally:
            for fd in fds:
                os.close(fd)

    def run(self, number: str, words: list[str], fds: list[int]) -> None:
        """Start a program; its order is that of tegu.sandbox.init."""
        self.last += 1
        run = _Run(number, fds[:3])
        self.runs[self.last] = run
        for i, fd in enumerate(fds[3:]):
            self.secret(i, fd)
        self.frames.send("R", self.last, "\0".join(words[2:]).encode(errors="surrogateescape"))

    def secret(self, index: int, fd: int) -> None:
        """Hand a sealed file over by its bytes."""
        try:
            size = os.fstat(fd).st_size
            for at in range(0, max(size, 1), CHUNK):
                part = os.pread(fd, CHUNK, at)
                self.frames.send("S", self.last, bytes([index]) + part)
        finally:
            os.close(fd)

    def kill(self, number: str, what: int, *, everything: bool) -> None:
        """Send a signal to a run, or end it with all that it left."""
        data = what.to_bytes(4, "little") + int(everything).to_bytes(4, "little")
        for id_, run in self.runs.items():
            if run.number == number and run.end is None:
                self.frames.send("K", id_, data)

    def order(self, kind: str, number: str, path: str, finish: Callable[[_Run], None]) -> _Run:
        """Give the guest an order about a path; `finish` tells the supervisor of its end."""
        self.last += 1
        run = _Run(number, [])
        run.collected = bytearray()
        run.finish = finish
        self.runs[self.last] = run
        self.frames.send(kind, self.last, os.fsencode(path))
        if kind != "P":
            self.frames.send("I", self.last)
        return run

    def open(self, number: str, path: str, flags: int) -> None:
        """Answer with a file in memory: the content, a directory's entries, or an empty one that
        `commit` carries into the guest."""
        if flags & (os.O_APPEND | os.O_EXCL):
            raise OSError(errno.EINVAL, "not in a microVM")
        if flags & os.O_ACCMODE != os.O_RDONLY:
            file = os.memfd_create("file", os.MFD_CLOEXEC)
            old = self.writes.pop(path, -1)
            if old >= 0:
                os.close(old)
            self.writes[path] = file
            while len(self.writes) > 64:  # a client that never commits
                os.close(self.writes.pop(next(iter(self.writes))))
            wireless.tell(self.link, "done", number, fds=[file])
            return
        listing = bool(flags & os.O_DIRECTORY)
        run = self.order("L" if listing else "G", number, path, self._hand_over)
        run.limit = _MAX_LISTING if listing else _MAX_FILE

    def _hand_over(self, run: _Run) -> None:
        file = os.memfd_create("file", os.MFD_CLOEXEC)
        try:
            with open(file, "wb", closefd=False) as f:
                f.write(run.collected or b"")
            os.lseek(file, 0, os.SEEK_SET)
            wireless.tell(self.link, "done", run.number, fds=[file])
        finally:
            os.close(file)

    def commit(self, number: str, path: str) -> None:
        """Write what a client has put into the file that `open` gave it."""
        file = self.writes.pop(path, -1)
        if file < 0:
            raise OSError(errno.ENOENT, "it was not opened for writing")
        os.lseek(file, 0, os.SEEK_SET)
        run = self.order("P", number, path, _plain(self.link))
        run.stdin = file

    def hold(self, *, stop: bool) -> None:
        """Stop the machine's processors, or let them go on with the clock set."""
        if stop and not self.paused:
            self.vm.pause()
        elif not stop and self.paused:
            self.vm.resume()
            self.wake()
        self.paused = stop

    def snapshot(self, name: str) -> None:
        """Save memory and disk as the snapshot `name`; the box goes on afterwards."""
        if self.paused:
            raise SandboxError("the box is paused", hint="resume it first")
        target = self.state / "snapshots" / snapshots.check_name(name)
        if target.exists():
            raise SandboxError(f"there is a snapshot {name} already")
        room = self.machine.memory + os.fstat(self.disk).st_blocks * 512 + _MARGIN
        need_room(self.state, room, "memory and disk")
        self.frames.send("F", 0)
        self.answer("F", time.monotonic() + _WAKE)
        try:
            with appear(target) as fresh:
                self.driver.save_copy(self.vm, self.machine, fresh, self.disk)
                copy = os.open(fresh / "disk", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    snapshots.copy_sparse(self.disk, copy)
                finally:
                    os.close(copy)
                about = {"spec": self.spec.to_json(), "runs": self.last}
                snapshots.write(fresh, self.machine, about)
        finally:
            self.vm.resume()
            self.wake()

    # What the guest says.

    def heard(self, kind: str, number: int, data: bytes) -> None:
        """Take one frame. The guest may lie: about itself only, and in a fixed form."""
        run = self.runs.get(number)
        if run is None:
            if kind in ("o", "e") and data:
                # Of a program that ran when the snapshot was made: nobody hears it, and it goes on.
                which = (1 if kind == "o" else 2).to_bytes(4, "little")
                self.frames.send("C", number, which + len(data).to_bytes(4, "little"))
            return
        if kind in ("o", "e"):
            self.output(run, kind, number, data)
        elif kind == "c" and len(data) == 4:
            run.room = min(WINDOW, run.room + int.from_bytes(data, "little"))
        elif kind == "x":
            fields = data.decode(errors="replace").split("\0")
            if len(fields) == 5:
                run.end = ["exited", run.number, *fields]
        elif kind == "f":
            code, what = _reason(data)
            run.end = ["failed", run.number, str(code), what]

    def output(self, run: _Run, kind: str, number: int, data: bytes) -> None:
        if run.collected is not None:
            if kind == "o" and len(run.collected) + len(data) > run.limit:
                run.end = run.end or ["failed", run.number, str(errno.EFBIG), "it is too large"]
                self.kill(run.number, 9, everything=True)
            elif kind == "o":
                run.collected += data
            self.credit(run, kind, number, len(data))
        elif run.outputs[kind] < 0:
            self.credit(run, kind, number, len(data))
        elif data:
            if len(run.waiting[kind]) + len(data) > 2 * WINDOW:
                raise SandboxError("the virtual machine talks nonsense: it was killed")
            run.waiting[kind] += data
            self.pour(run, kind, number)

    def credit(self, run: _Run, kind: str, number: int, count: int) -> None:
        """Let the guest send more of an output, in large steps."""
        run.owed[kind] += count
        if run.owed[kind] >= WINDOW // 4 and run.end is None:
            which = (1 if kind == "o" else 2).to_bytes(4, "little")
            self.frames.send("C", number, which + run.owed[kind].to_bytes(4, "little"))
            run.owed[kind] = 0

    def pour(self, run: _Run, kind: str, number: int | None = None) -> None:
        """Write to a client's descriptor what it takes now."""
        if number is None:
            number = next(n for n, r in self.runs.items() if r is run)
        waiting, fd = run.waiting[kind], run.outputs[kind]
        while waiting and select.select([], [fd], [], 0)[1]:
            try:
                done = os.write(fd, waiting[:_AT_ONCE])
            except BlockingIOError:
                return
            except OSError:  # nobody reads it: the program shall not wait for that
                done = len(waiting)
                os.close(fd)
                run.outputs[kind] = -1
            del waiting[:done]
            self.credit(run, kind, number, done)

    def feed(self, run: _Run) -> None:
        """Read from a client's descriptor what the guest takes."""
        number = next(n for n, r in self.runs.items() if r is run)
        try:
            data = os.read(run.stdin, min(CHUNK, run.room))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        run.room -= len(data)
        self.frames.send("I", number, data)
        if not data:
            os.close(run.stdin)
            run.stdin = -1

    def conclude(self) -> None:
        """Tell of runs that have ended and whose output is out."""
        for number, run in list(self.runs.items()):
            if run.end is None or any(run.waiting[k] and run.outputs[k] >= 0 for k in ("o", "e")):
                continue
            del self.runs[number]
            run.close()
            if run.finish is not None and run.end[0] == "exited":
                run.finish(run)
            elif run.end[0] == "exited":
                _, name, status, user, system, rss, starved = run.end
                words = ("exited", name, status, user, system, rss)
                wireless.tell(self.link, *words, *(["oom"] if starved == "1" else []))
            else:
                wireless.tell(self.link, *run.end)


def _plain(link: socket.socket) -> Callable[[_Run], None]:
    return lambda run: wireless.tell(link, "done", run.number)


def _reason(data: bytes) -> tuple[int, str]:
    number, _, what = data.decode(errors="replace").partition("\0")
    return (int(number) if number.isdigit() else 0), what[:200] or "no reason"


def main(control: int, arguments: list[str]) -> None:
    """Serve the supervisor on the descriptor `control`: box, source and state as arguments."""
    import json

    libc.close_range(control + 1)
    link = socket.socket(fileno=control)
    spec = BoxSpec.from_json(json.loads(arguments[0]))
    data, fds = wireless.receive(link)
    if not data:
        sys.exit(0)
    words = wireless.split(data)
    host = _Host(link, spec, Path(arguments[1]), Path(arguments[2]))
    try:
        host.start()
        if words[0] == "init":
            wireless.tell(link, "ready")
        else:
            host.obey(words, fds)
        host.serve()
    except TeguError as e:
        with suppress(OSError):
            wireless.tell(link, "error", "starting its microVM", "0", e.message)
    except OSError as e:
        what = f"{e.filename}: " if e.filename else ""
        with suppress(OSError):
            wireless.tell(link, "error", "starting its microVM", "0", f"{what}{e.strerror or e}")
