"""Process 1 of a box that lives on: starts programs, waits for all, opens files when asked.

It runs under the very restrictions of the box and has no more rights than what it starts; the
supervisor believes nothing it says but its own program's end.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal wraps, without enum
import _socket
import errno
import fcntl
import os
import select

from tegu.linux import openat
from tegu.sandbox import wireless

__all__ = ["become_user", "change_path", "program", "rehearse", "serve", "user_of"]

_RESET = (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGTERM, _signal.SIGHUP)
_HIGH = 64
"""Above all that a program is given, and within the lowest limit on descriptors."""


class _Run:
    """A program started by order. `before` is what was there already: the end of this run spares
    it, with all that descends from it. Processes are (pid, start time), which is not used twice."""

    __slots__ = ("before", "number")

    def __init__(self, number: str, before: set[tuple[int, int]]) -> None:
        self.number = number
        self.before = before


class _Process:
    """A living process of the box, from proc_pid_stat(5)."""

    __slots__ = ("begun", "parent", "pid", "session")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.parent, self.session, self.begun = int(fields[1]), int(fields[3]), int(fields[19])


class _Box:
    __slots__ = ("last_run", "link", "root", "runs")

    def __init__(self, link: _socket.socket) -> None:
        self.link = link
        self.last_run = False
        """Whether the box ends with its first run ("once")."""
        self.runs: dict[int, _Run] = {}
        """By the pid of the program."""
        self.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def rehearse() -> None:
    """Do what a start takes, without starting anything, while nobody waits.

    Pages of a clone are copied when they are first touched; this touches them.
    """
    actions = [(os.POSIX_SPAWN_DUP2, 0, 0)]
    try:
        program(wireless.split(b"run\x001\0/\x001\0x\0A=b"))
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _HIGH))
        os.chdir("/")
        os.posix_spawn("/", ["x"], {}, file_actions=actions, setsid=True, setsigdef=_RESET)
    except OSError:  # there is nothing to start at "/": that far it is the same
        return


def serve(link: _socket.socket, first: list[str], fds: list[int]) -> None:
    """Carry out orders until the supervisor closes the socket; never returns."""
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)
    wake_r, wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    box = _Box(link)
    _obey(box, first, fds)
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(wake_r, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if wake_r in ready:
            os.read(wake_r, 4096)
            _reap(box)
        if link.fileno() in ready:
            data, fds = wireless.receive(link)
            if not data:
                os._exit(0)  # and with process 1 all others end
            _obey(box, wireless.split(data), fds)  # from the supervisor, through its own socket


def _reap(box: _Box) -> None:
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        run = box.runs.pop(pid, None)
        if run is not None:
            times = f"{usage.ru_utime:.6f}", f"{usage.ru_stime:.6f}", str(usage.ru_maxrss)
            wireless.tell(box.link, "exited", run.number, str(status), *times)
            if box.last_run:
                os._exit(0)  # and with process 1 all others end
            _settle(box, pid)


def _settle(box: _Box, ended: int) -> None:
    """What a run that ended has left belongs to no other: the others' ends spare it."""
    if not box.runs:
        return
    left = {(p.pid, p.begun) for p in _processes().values() if p.session == ended}
    for other in box.runs.values():
        other.before |= left


def _obey(box: _Box, words: list[str], fds: list[int]) -> None:
    op, number = words[0], words[1]
    opened = []
    try:
        if op == "init":
            wireless.tell(box.link, "ready")
        elif op in ("run", "once"):
            box.last_run = op == "once"
            _run(box, words, fds)
        elif op == "kill":
            _kill(box, number, int(words[2]), everything=words[3] == "1")
        elif op == "open":
            flags = int(words[3])
            mode = 0o644 if flags & os.O_CREAT else 0
            opened.append(openat.open_in_root(box.root, words[2], flags, mode))
            wireless.tell(box.link, "done", number, fds=opened)
        elif op == "socket":
            flags = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
            opened.append(_socket.socket(_socket.AF_INET, flags).detach())
            wireless.tell(box.link, "done", number, fds=opened)
        else:
            _change(box, op, words[2:])
            wireless.tell(box.link, "done", number)
    except OSError as e:
        wireless.tell(box.link, "failed", number, str(e.errno or 0), e.strerror or str(e))
    except ValueError as e:  # such as a name that no encoding can hold: not the end of a box
        wireless.tell(box.link, "failed", number, str(errno.EINVAL), str(e))
    finally:
        for fd in (*fds, *opened):
            os.close(fd)


def program(words: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """Return (working directory, argv, environment) of an order to run something.

    Its fields: the order, its number, the directory, how many words argv has and, after a space,
    the user if it is not root (`user_of`), argv, and NAME=VALUE.
    """
    end = 4 + int(words[3].partition(" ")[0])
    return words[2], words[4:end], dict(word.split("=", 1) for word in words[end:])


def user_of(words: list[str]) -> list[int]:
    """Return [uid, gid, more groups ...] of an order to run something; empty for root."""
    _, _, user = words[3].partition(" ")
    return [int(i) for i in user.replace(":", ",").split(",")] if user else []


def become_user(ids: list[int]) -> None:
    """Give this process the ids that `user_of` returned."""
    if ids:
        os.setgroups(ids[2:])
        os.setresgid(ids[1], ids[1], ids[1])
        os.setresuid(ids[0], ids[0], ids[0])


def _fork(path: str, argv: list[str], env: dict[str, str], high: list[int], ids: list[int]) -> int:
    """Start a program as another user, which posix_spawn(3) cannot; raises its OSError."""
    told_r, told_w = os.pipe2(os.O_CLOEXEC)
    told_w, low = fcntl.fcntl(told_w, fcntl.F_DUPFD_CLOEXEC, _HIGH), told_w
    os.close(low)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _signal.set_wakeup_fd(-1)
            for number in (*_RESET, _signal.SIGCHLD):
                _signal.signal(number, _signal.SIG_DFL)
            for i, fd in enumerate(high):
                os.dup2(fd, i)
            become_user(ids)
            os.execve(path, argv, env)
        except OSError as e:
            os.write(told_w, (e.errno or errno.EIO).to_bytes(4, "little"))
        finally:
            os._exit(127)
    os.close(told_w)
    try:
        said = os.read(told_r, 4)
    finally:
        os.close(told_r)
    if said:
        os.waitpid(pid, 0)
        number = int.from_bytes(said, "little")
        raise OSError(number, os.strerror(number))
    return pid


def _run(box: _Box, words: list[str], fds: list[int]) -> None:
    cwd, argv, env = program(words)
    path = _find(argv[0], env.get("PATH", os.defpath), cwd)
    before = set() if box.last_run else {(p.pid, p.begun) for p in _processes().values()}
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in fds]
    os.chdir(cwd)
    try:
        ids = user_of(words)
        if ids:
            pid = _fork(path, argv, env, high, ids)
        else:
            pid = os.posix_spawn(
                path,
                argv,
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, i) for i, fd in enumerate(high)],
                setsid=True,
                setsigdef=_RESET,
            )
    finally:
        os.chdir("/")
        for fd in high:
            os.close(fd)
    box.runs[pid] = _Run(words[1], before)
    if not box.last_run:
        wireless.tell(box.link, "started", words[1], str(pid))


def _find(name: str, path: str, cwd: str) -> str:
    if "/" in name:
        return name
    for directory in path.split(":"):
        found = os.path.join(cwd, directory, name)  # noqa: PTH118 - pathlib is not loaded here
        if os.access(found, os.X_OK) and not os.path.isdir(found):  # noqa: PTH112
            return found
    raise FileNotFoundError(2, "no such program in the box's PATH")


def _kill(box: _Box, number: str, signal: int, *, everything: bool) -> None:
    """Send `signal` to a run's program, or end it with all that it left, however it was parented.

    Spared are what was there before the run began, and other runs with what is theirs.
    """
    mine = next((pid for pid, run in box.runs.items() if run.number == number), 0)
    if not mine:
        return
    if not everything:
        _quietly(mine, signal)
        return
    before = box.runs[mine].before
    if len(box.runs) == 1 and not before:
        _quietly(-1, signal)  # all at once: nothing can fork away
        return
    others = {pid for pid in box.runs if pid != mine}
    for _ in range(64):  # as long as something is left that may be forking away
        there = _processes()
        doomed = [p.pid for p in there.values() if not _spared(p, there, others, before)]
        if not doomed:
            break
        for pid in doomed:
            _quietly(pid, signal)
    _reap(box)


def _quietly(pid: int, signal: int) -> None:
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        return


def _processes() -> dict[int, _Process]:
    """Return every process here but this one and those that ended, by pid."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit() or name == "1":
            continue
        try:
            fd = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fields = os.read(fd, 4096).rpartition(b")")[2].split()
        except OSError:
            continue
        finally:
            os.close(fd)
        if fields and fields[0] not in (b"Z", b"X"):
            found[int(name)] = _Process(int(name), fields)
    return found


def _spared(
    process: _Process | None,
    there: dict[int, _Process],
    others: set[int],
    before: set[tuple[int, int]],
) -> bool:
    while process is not None:
        if (process.pid, process.begun) in before or {process.pid, process.session} & others:
            return True
        process = there.get(process.parent)
    return False


def _change(box: _Box, op: str, arguments: list[str]) -> None:
    if op == "pause":
        _quietly(-1, _signal.SIGSTOP)
    elif op == "resume":
        _quietly(-1, _signal.SIGCONT)
    else:
        change_path(box.root, op, arguments)


def change_path(root: int, op: str, arguments: list[str]) -> None:
    """mkdir, remove or rename below the directory `root`; raises OSError."""
    if op in ("mkdir", "remove"):
        fd, name = _place(root, arguments[0])
        try:
            if op == "mkdir":
                os.mkdir(name, 0o755, dir_fd=fd)
            else:
                _remove(fd, name)
        finally:
            os.close(fd)
    elif op == "rename":
        fd, name = _place(root, arguments[0])
        try:
            to, new = _place(root, arguments[1])
            try:
                os.rename(name, new, src_dir_fd=fd, dst_dir_fd=to)
            finally:
                os.close(to)
        finally:
            os.close(fd)
    else:
        raise OSError(38, f"no such order: {op}")


def _place(root: int, path: str) -> tuple[int, str]:
    """Open the directory that a path's last name is in; return it, and that name."""
    directory, _, name = path.rstrip("/").rpartition("/")
    return openat.open_in_root(root, directory or "/", os.O_PATH | os.O_DIRECTORY), name


def _remove(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        os.rmdir(name, dir_fd=directory)
