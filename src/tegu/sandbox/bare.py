"""The class `process`: a program held by Landlock, a system call filter, limits and a user id that
no other box has. It sees this machine's programs and a /tmp of its own.

`main` is the box's first process on the host's side: it takes the orders of tegu.sandbox.box and
never runs what is not ours. What it starts is confined first, and descends from it for good
(PR_SET_CHILD_SUBREAPER), so that nothing can leave.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

from tegu.linux import confine, landlock, libc
from tegu.sandbox import init, wireless
from tegu.sandbox.policy import process_filter
from tegu.sandbox.spec import BoxSpec
from tegu.sandbox.template import readable_paths

__all__ = ["FIRST_ID", "IDS", "confined", "kill_user", "main", "processes_of"]

FIRST_ID = 0x6FFF_0000
"""User ids of boxes of this class on the host, above those of containers (tegu.sandbox.nursery)."""
IDS = 0x7FFF
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
_DEVICES = ("null", "zero", "full", "random", "urandom")
_HIGH = 64
_RESET = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGHUP)


def processes_of(user: int) -> Iterator[tuple[int, str, int]]:
    """Yield (pid, state, parent) of every process that runs as `user`; states are proc_pid_stat's.

    Its own word counts, not the owner of /proc/PID, which a program may make root.
    """
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/status", "rb") as f:  # noqa: PTH123
                text = f.read(2048)
        except OSError:
            continue
        fields = dict(line.partition(b":")[::2] for line in text.splitlines())
        users = fields.get(b"Uid", b"").split()
        if users and int(users[0]) == user:
            yield int(name), fields[b"State"].split()[0].decode(), int(fields[b"PPid"])


def kill_user(user: int) -> bool:
    """Kill all that runs as `user`; true when nothing is left but what is yet to be waited for.

    Stopped first, over and over, so that none can start another behind our back.
    """
    seen: set[int] = set()
    for _ in range(64):
        there = {pid for pid, state, _ in processes_of(user) if state not in "ZX"}
        if not there - seen:
            break
        for pid in there - seen:
            _send(pid, signal.SIGSTOP)
        seen |= there
    for pid in seen:
        _send(pid, signal.SIGKILL)
    return not seen


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def rule_set() -> int:
    """Return the Landlock rule set of this class: what a program may open."""
    version = landlock.abi()
    files = landlock.FS_ALL if version >= 5 else landlock.FS_ALL & ~(1 << 15)
    if version < 3:
        files &= ~(1 << 14)
    if version < 2:
        files &= ~(1 << 13)
    scoped = landlock.SCOPE_ABSTRACT_SOCKETS | landlock.SCOPE_SIGNALS if version >= 6 else 0
    rules = landlock.ruleset(files, tcp=version >= 4, scoped=scoped)
    for path in readable_paths():
        landlock.allow_beneath(rules, path, landlock.FS_READ | landlock.FS_EXECUTE)
    for name in _DEVICES:
        with suppress(FileNotFoundError):
            landlock.allow_beneath(rules, f"/dev/{name}", landlock.FS_READ | (1 << 1))
    own = files & (landlock.FS_READ | landlock.FS_WRITE | landlock.FS_EXECUTE)
    landlock.allow_beneath(rules, "/tmp", own)
    return rules


def confined(user: int, rules: int, program: bytes, limits: dict[int, int]) -> None:
    """Give up for good what a program of this class may not have. In the new process only."""
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    confine.no_new_privileges()
    confine.keep_capabilities((), bounding=False)
    landlock.restrict(rules)
    confine.load_filter(program)


class _Held:
    def __init__(self, link: socket.socket, spec: BoxSpec, user: int) -> None:
        self.link = link
        self.user = user
        self.once = False
        self.runs: dict[int, tuple[str, set[int]]] = {}
        """By the program's pid: its number, and what was there before it."""
        self.rules = rule_set()
        self.program = process_filter()
        limits = spec.limits
        self.limits = {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: limits.files,
            resource.RLIMIT_NPROC: limits.pids,
            resource.RLIMIT_MEMLOCK: 65536,
            resource.RLIMIT_FSIZE: limits.disk,
        }
        if limits.memory is not None:
            self.limits[resource.RLIMIT_DATA] = limits.memory  # of each; the group counts all

    def obey(self, words: list[str], fds: list[int]) -> None:
        op, number = words[0], words[1]
        try:
            if op == "init":
                wireless.tell(self.link, "ready")
            elif op in ("run", "once"):
                self.once = op == "once"
                self.run(words, fds)
            elif op == "kill":
                self.kill(number, int(words[2]), everything=words[3] == "1")
            elif op in ("pause", "resume"):
                for pid, _, _ in processes_of(self.user):
                    _send(pid, signal.SIGSTOP if op == "pause" else signal.SIGCONT)
                wireless.tell(self.link, "done", number)
            else:
                opened = self.on_path(op, words[2:])
                wireless.tell(self.link, "done", number, fds=opened)
                for fd in opened:
                    os.close(fd)
        except OSError as e:
            wireless.tell(self.link, "failed", number, str(e.errno or 0), e.strerror or str(e))
        except ValueError as e:
            wireless.tell(self.link, "failed", number, "22", str(e))
        finally:
            for fd in fds:
                os.close(fd)

    def fork(self, then: Callable[[int], None]) -> tuple[int, socket.socket]:
        """Start a confined process that calls `then` with a socket to us; returns its pid and our
        end, on which it tells of an error, if any."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid:
            theirs.close()
            return pid, ours
        try:
            ours.close()
            os.setsid()
            signal.set_wakeup_fd(-1)
            for signal_number in (*_RESET, signal.SIGCHLD):
                signal.signal(signal_number, signal.SIG_DFL)
            confined(self.user, self.rules, self.program, self.limits)
            then(theirs.fileno())
        except OSError as e:
            with suppress(OSError):
                wireless.tell(theirs, str(e.errno or 0), e.strerror or str(e))
        except BaseException as e:  # noqa: BLE001 - a forked child must never return to the caller
            with suppress(OSError):
                wireless.tell(theirs, "22", str(e))
        os._exit(127)

    def run(self, words: list[str], fds: list[int]) -> None:
        cwd, argv, env = init.program(words)
        env.setdefault("TMPDIR", "/tmp")
        env["HOME"] = "/tmp" if env.get("HOME") == "/root" else env["HOME"]
        before = {pid for pid, _, _ in processes_of(self.user)}

        def start(link: int) -> None:
            os.chdir(cwd if cwd != "/" else "/tmp")
            up = [os.dup2(fd, _HIGH + i, inheritable=False) for i, fd in enumerate(fds)]
            os.dup2(link, _HIGH + len(fds), inheritable=False)
            libc.close_range(3, _HIGH - 1)
            for i, fd in enumerate(up):
                os.dup2(fd, i)
            libc.close_range(_HIGH + len(fds) + 1)
            libc.close_range(_HIGH, on_exec=True)
            try:
                os.execvpe(argv[0], argv, env)
            except OSError as e:
                told = socket.socket(fileno=_HIGH + len(fds))
                wireless.tell(told, str(e.errno or 0), e.strerror or str(e))
                os._exit(127)

        pid, link = self.fork(start)
        try:
            said, _ = wireless.receive(link)
        finally:
            link.close()
        if said:
            os.waitpid(pid, 0)
            code, what = wireless.split(said)
            raise OSError(int(code), what)
        self.runs[pid] = (words[1], before)

    def on_path(self, op: str, arguments: list[str]) -> list[int]:
        """Open, make or remove a path, in a process with a program's own rights."""
        path = os.fsencode(arguments[0])

        def act(link: int) -> None:
            told = socket.socket(fileno=link)
            if op == "open":
                fd = os.open(path, int(arguments[1]) | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                wireless.tell(told, "0", fds=[fd])
            elif op == "mkdir":
                os.mkdir(path, 0o755)  # noqa: PTH102
                wireless.tell(told, "0")
            elif op == "remove":
                is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
                (os.rmdir if is_directory else os.unlink)(path)
                wireless.tell(told, "0")
            else:
                raise OSError(38, f"no such order: {op}")
            os._exit(0)

        pid, link = self.fork(act)
        try:
            said, opened = wireless.receive(link)
        finally:
            link.close()
            os.waitpid(pid, 0)
        words = wireless.split(said)
        if words[0] != "0":
            code = int(words[0]) if words[0].isdigit() else 5
            raise OSError(code, words[1] if len(words) > 1 else os.strerror(code))
        return opened

    def kill(self, number: str, what: int, *, everything: bool) -> None:
        mine = next((pid for pid, (n, _) in self.runs.items() if n == number), 0)
        if not mine:
            return
        if not everything:
            _send(mine, what)
            return
        before = self.runs[mine][1]
        if len(self.runs) == 1 and not before:
            kill_user(self.user)
            return
        others = {pid for pid in self.runs if pid != mine}
        for _ in range(64):
            there = {pid: parent for pid, state, parent in processes_of(self.user) if state != "Z"}
            doomed = [pid for pid in there if not _spared(pid, there, others, before)]
            if not doomed:
                return
            for pid in doomed:
                _send(pid, signal.SIGKILL)

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number, _ = self.runs.pop(pid, ("", set()))
            if number:
                times = f"{usage.ru_utime:.6f}", f"{usage.ru_stime:.6f}", str(usage.ru_maxrss)
                wireless.tell(self.link, "exited", number, str(status), *times)
                left = {p for p, state, _ in processes_of(self.user) if state != "Z"}
                for _, spared in self.runs.values():
                    spared.update(left - set(self.runs))


def _spared(pid: int, there: dict[int, int], others: set[int], before: set[int]) -> bool:
    while pid in there:
        if pid in before or pid in others:
            return True
        pid = there[pid]
    return False


def _own_tmp(size: int, user: int) -> None:
    """Mount a /tmp that only this box sees, with what it may write at most."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    about = f"mode=0700,uid={user},gid={user},size={size},nr_inodes={max(1024, size // 4096)}"
    libc.mount("box", "/tmp", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, about)


def main(control: int, arguments: list[str]) -> None:
    """Serve the supervisor on the descriptor `control`: the box as JSON, and its user id."""
    libc.close_range(control + 1)
    link = socket.socket(fileno=control)
    link.set_inheritable(False)
    spec, user = BoxSpec.from_json(json.loads(arguments[0])), int(arguments[1])
    data, fds = wireless.receive(link)
    if not data:
        sys.exit(0)
    try:
        libc.prctl(_SUBREAPER, 1)
        _own_tmp(spec.limits.disk, user)
        held = _Held(link, spec, user)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        text = f"{where}{e.strerror or e}"
        wireless.tell(link, "error", "confining it", str(e.errno or 0), text)
        return
    wake_r, wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    held.obey(wireless.split(data), fds)
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(wake_r, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if wake_r in ready:
            with suppress(BlockingIOError):
                os.read(wake_r, 4096)
        held.reap()
        if link.fileno() in ready:
            data, fds = wireless.receive(link)
            if not data:
                break
            held.obey(wireless.split(data), fds)
    kill_user(user)
