"""The process that holds one gVisor box: it takes the orders of tegu.sandbox.box and calls runsc.

It is two: one outside, whom the supervisor knows and may kill, and process 1 of a pid namespace
with all of runsc's processes, which ends with the first (PR_SET_PDEATHSIG), and everything with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from tegu.errors import TeguError
from tegu.linux import libc, openat
from tegu.process import CommandError, run
from tegu.sandbox import init, wireless
from tegu.sandbox.gvisor import bundle
from tegu.sandbox.gvisor.programs import descends, end_of_program, find_program, parents_by_pid
from tegu.sandbox.gvisor.pump import Pumps
from tegu.sandbox.spec import BoxSpec

__all__ = ["main"]

_ID = "box"
_CONTROL_DEADLINE = 20.0
_START_DEADLINE = 60.0
_POLL = 20  # milliseconds, while a program's number is awaited
_KILL_ROUNDS = 32


class _Run:
    """A program: the order's number, where runsc writes the pid it has in the box, and that pid."""

    def __init__(self, number: str, pid_file: Path) -> None:
        self.number = number
        self.pid_file = pid_file
        self.inner = 0

    def look(self) -> bool:
        """Whether the pid is known now."""
        if not self.inner:
            with suppress(OSError, ValueError):
                self.inner = int(self.pid_file.read_text())
        return self.inner > 0


class _Held:
    def __init__(
        self, link: socket.socket, spec: BoxSpec, runsc: list[str], poll: select.poll
    ) -> None:
        self.link = link
        self.pumps = Pumps(poll)
        self.spec = spec
        self.runsc = runsc
        self.root = os.open(bundle.ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.runs: dict[int, _Run] = {}
        """By the pid of the runsc that waits for it."""
        self.sandbox = 0
        """The pid of a living box's gVisor: the box ends with it."""
        self.only = 0
        """The pid of the runsc whose program the box ends with."""
        self.tell_only = True

    def obey(self, words: list[str], fds: list[int]) -> None:
        op, number = words[0], words[1]
        try:
            if op == "init":
                self.live()
            elif op in ("once", "become"):
                self.tell_only = op == "once"
                self.once(words, fds)
            elif op == "run":
                self.run(words, fds)
            elif op == "kill":
                self.kill(number, int(words[2]), everything=words[3] == "1")
            elif op in ("pause", "resume"):
                self.control(op, _ID)
                wireless.tell(self.link, "done", number)
            elif op == "open":
                flags = int(words[3])
                mode = 0o644 if flags & os.O_CREAT else 0
                fd = openat.open_in_root(self.root, words[2], flags, mode)
                wireless.tell(self.link, "done", number, fds=[fd])
                os.close(fd)
            elif op == "socket":
                raise OSError(95, "a gVisor's network cannot be reached from outside")
            else:
                init.change_path(self.root, op, words[2:])
                wireless.tell(self.link, "done", number)
        except (OSError, ValueError, TeguError) as e:
            self.refuse(op, number, e)
        finally:
            for fd in fds:
                os.close(fd)

    def refuse(self, op: str, number: str, e: Exception) -> None:
        code = e.errno or 0 if isinstance(e, OSError) else 22
        text = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        if op == "init":
            wireless.tell(self.link, "error", "starting it in gVisor", str(code), text)
            sys.exit(1)
        if op == "become":
            wireless.tell(self.link, "error", "taking orders", str(code), text)
            sys.exit(1)
        wireless.tell(self.link, "failed", number, str(code), text)

    def control(self, *words: str) -> str:
        """Call runsc and return what it says. Raises CommandError."""
        return run([*self.runsc, *words], timeout=_CONTROL_DEADLINE).stdout

    def live(self) -> None:
        """Start the box with a first process that only waits."""
        process = bundle.process_of(self.spec, bundle.holder(), {"PATH": "/bin:/usr/bin"}, "/", [])
        bundle.write_config(self.spec, process)
        pid_file = bundle.STATE / "pid"
        words = ["run", "-detach", "-pid-file", str(pid_file), "--bundle", str(bundle.BUNDLE), _ID]
        try:
            # Its streams must not be pipes of ours: gVisor would hold them open.
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            pid = self.spawn([*words], [null, null, null])
            os.close(null)
            deadline = time.monotonic() + _START_DEADLINE
            while os.waitpid(pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    raise OSError(110, f"runsc did not start it within {_START_DEADLINE:g} s")
                time.sleep(0.002)
            self.sandbox = int(pid_file.read_text())
        except (CommandError, FileNotFoundError, ValueError) as e:
            raise OSError(5, f"runsc did not start it{_last_words()}") from e
        wireless.tell(self.link, "ready")

    def once(self, words: list[str], fds: list[int]) -> None:
        """Start the box with a program as its first process."""
        process = self.process(words, fds)
        bundle.write_config(self.spec, process)
        self.only = self.spawn(["run", "--bundle", str(bundle.BUNDLE), _ID], fds)
        self.runs[self.only] = _Run(words[1], Path(os.devnull))

    def run(self, words: list[str], fds: list[int]) -> None:
        place = bundle.STATE / f"run-{words[1]}"
        place.with_suffix(".json").write_text(json.dumps(self.process(words, fds)))
        pid_file = place.with_suffix(".pid")
        options = ["--process", str(place.with_suffix(".json")), "--internal-pid-file", pid_file]
        pid = self.spawn(["exec", *map(str, options), _ID], fds)
        self.runs[pid] = _Run(words[1], pid_file)

    def process(self, words: list[str], fds: list[int]) -> dict[str, object]:
        if len(fds) > 3:
            raise OSError(95, "secrets do not reach a program in gVisor: it takes three streams")
        cwd, argv, env = init.program(words)
        find_program(self.root, argv[0], env.get("PATH", os.defpath), cwd)
        return bundle.process_of(self.spec, argv, env, cwd, init.user_of(words))

    def spawn(self, words: list[str], fds: list[int]) -> int:
        log = str(bundle.STATE / "log")
        argv = [*self.runsc[:1], f"--log={log}", *self.runsc[1:], *words]
        low = self.pumps.streams(fds)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in low]
        for fd in low:
            os.close(fd)
        try:
            return os.posix_spawn(
                argv[0],
                argv,
                dict(os.environ),
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, i) for i, fd in enumerate(high)],
                setsid=True,
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            )
        finally:
            for fd in high:
                os.close(fd)

    def kill(self, number: str, what: int, *, everything: bool) -> None:
        found = next(((p, r) for p, r in self.runs.items() if r.number == number), None)
        if found is None:
            return
        mine = found[1]
        end = time.monotonic() + _CONTROL_DEADLINE
        while not mine.look():
            if os.waitid(os.P_PID, found[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return  # it never began, or has ended
            if time.monotonic() > end:
                return
            time.sleep(0.005)
        if not everything:
            with suppress(CommandError):
                self.control("kill", "--pid", str(mine.inner), _ID, str(what))
            return
        for _ in range(_KILL_ROUNDS):
            doomed = self.left_by(mine)
            if not doomed:
                return
            for pid in doomed:
                with suppress(CommandError):
                    self.control("kill", "--pid", str(pid), _ID, str(int(signal.SIGKILL)))

    def left_by(self, mine: _Run) -> list[int]:
        """Return a run's processes, by their pids in the box, and those that it let go of.

        Spared are what descends from other runs, and what has a lower number: it was there before.
        """
        parents = parents_by_pid(self.control("ps", _ID))
        others = {r.inner for r in self.runs.values() if r is not mine and r.look()}
        return [pid for pid in parents if pid >= mine.inner and not descends(pid, parents, others)]

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.sandbox:
                sys.exit(0)  # and all else with us
            ended = self.runs.pop(pid, None)
            if ended is None:
                continue
            if pid == self.only and not self.tell_only:
                self.pumps.drain()
                code = os.waitstatus_to_exitcode(status)
                sys.exit(code if code >= 0 else 128 - code)
            self.pumps.drain()
            # What runsc itself used is not what the program did.
            told = str(end_of_program(status))
            wireless.tell(self.link, "exited", ended.number, told, "0", "0", "0")
            for suffix in (".json", ".pid"):
                with suppress(FileNotFoundError):
                    (bundle.STATE / f"run-{ended.number}").with_suffix(suffix).unlink()

    def announce(self, told: set[str]) -> bool:
        """Tell the pids of programs that have begun; whether there are some that have not."""
        waiting = False
        for pid, begun in self.runs.items():
            if pid == self.only or begun.number in told:
                continue
            if begun.look():
                told.add(begun.number)
                wireless.tell(self.link, "started", begun.number, str(begun.inner))
            else:
                waiting = True
        return waiting


def _last_words() -> str:
    try:
        lines = (bundle.STATE / "log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1][:300]}" if lines else ""


def _serve(
    link: socket.socket, outer: int, spec: BoxSpec, words: list[str], fds: list[int]
) -> None:
    """Process 1 of the box's pid namespace."""
    libc.parent_death_signal(signal.SIGKILL)
    gone = select.poll()
    gone.register(outer, select.POLLIN)
    if gone.poll(0):
        os._exit(1)  # who holds us ended before that
    runsc, platform = sys.argv[2], sys.argv[3]
    try:
        bundle.furnish(spec)
        options = [f"--root={bundle.STATE}/root", f"--platform={platform}", "--network=none"]
        # Files are also read and written from outside; later versions would keep writes inside.
        options += ["--ignore-cgroups", "--file-access=shared", "--overlay2=none"]
        poll = select.poll()
        held = _Held(link, spec, [runsc, *options], poll)
    except (OSError, TeguError) as e:
        where = f"{e.filename}: " if isinstance(e, OSError) and e.filename else ""
        text = e.strerror or str(e) if isinstance(e, OSError) else str(e)
        wireless.tell(link, "error", "building its root", "0", f"{where}{text}")
        return
    wake_r, wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    held.obey(words, fds)
    for fd in (link.fileno(), wake_r, outer):
        poll.register(fd, select.POLLIN)
    told: set[str] = set()
    while True:
        waiting = held.announce(told)
        ready = [fd for fd, _ in poll.poll(_POLL if waiting else None)]
        if outer in ready:
            return
        if wake_r in ready:
            with suppress(BlockingIOError):
                os.read(wake_r, 4096)
        held.pumps.pump(ready)
        held.reap()
        if link.fileno() in ready:
            data, fds = wireless.receive(link)
            if not data:
                return
            held.obey(wireless.split(data), fds)


def main(control: int, arguments: list[str]) -> None:
    """Serve the supervisor on the descriptor `control`: the box as JSON, runsc, its platform."""
    libc.close_range(control + 1)
    link = socket.socket(fileno=control)
    link.set_inheritable(False)
    spec = BoxSpec.from_json(json.loads(arguments[0]))
    data, fds = wireless.receive(link)
    if not data:
        sys.exit(0)
    alive_r, alive_w = os.pipe2(os.O_CLOEXEC)
    # A network of its own, as the abstract sockets by which runsc's processes talk are of one.
    libc.unshare(libc.CLONE_NEWPID | libc.CLONE_NEWNS | libc.CLONE_NEWNET | libc.CLONE_NEWIPC)
    pid = os.fork()
    if pid == 0:
        os.close(alive_w)
        try:
            _serve(link, alive_r, spec, wireless.split(data), fds)
        except SystemExit as e:
            os._exit(e.code if isinstance(e.code, int) else 1)
        finally:
            os._exit(0)
    link.close()
    for fd in fds:
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)
