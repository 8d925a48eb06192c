"""Process 1 of a box that lives on: starts programs, waits for all, opens files when asked.

It runs under the very restrictions of the box and has no more rights than what it starts; the
supervisor believes nothing it says but its own program's end.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal wraps, without enum
import _socket
import errno
import fcntl
import marshal
import os
import select
from typing import Any

from tegu.linux import openat
from tegu.sandbox import wireless

__all__ = ["rehearse", "serve"]

_RESET = (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGTERM, _signal.SIGHUP)
_HIGH = 64
"""Above all that a program is given, and within the lowest limit on descriptors."""


class _Box:
    __slots__ = ("link", "root", "runs")

    def __init__(self, link: _socket.socket) -> None:
        self.link = link
        self.runs: dict[int, str] = {}
        """Pid of each program started by order, to the order's number."""
        self.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def rehearse() -> None:
    """Do what a start takes, without starting anything, while nobody waits.

    Pages of a clone are copied when they are first touched; this touches them.
    """
    actions = [(os.POSIX_SPAWN_DUP2, 0, 0)]
    try:
        marshal.loads(marshal.dumps({"op": "run", "n": 1, "argv": ["x"], "env": {}, "cwd": "/"}))
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _HIGH))
        os.chdir("/")
        os.posix_spawn("/", ["x"], {}, file_actions=actions, setsid=True, setsigdef=_RESET)
    except OSError:  # there is nothing to start at "/": that far it is the same
        return


def serve(link: _socket.socket, first: dict[str, Any], fds: list[int]) -> None:
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
            _obey(box, marshal.loads(data), fds)  # from the supervisor, through its own socket


def _reap(box: _Box) -> None:
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        number = box.runs.pop(pid, None)
        if number is not None:
            times = f"{usage.ru_utime:.6f}", f"{usage.ru_stime:.6f}", str(usage.ru_maxrss)
            wireless.tell(box.link, "exited", number, str(status), *times)


def _obey(box: _Box, order: dict[str, Any], fds: list[int]) -> None:
    number = str(order["n"])
    opened = []
    try:
        op = order["op"]
        if op == "init":
            wireless.tell(box.link, "ready")
        elif op == "run":
            _run(box, number, order, fds)
        elif op == "kill":
            _kill(box, number, order["signal"], everything=order["everything"])
        elif op == "open":
            mode = 0o644 if order["flags"] & os.O_CREAT else 0
            opened.append(openat.open_in_root(box.root, order["path"], order["flags"], mode))
            wireless.tell(box.link, "done", number, fds=opened)
        else:
            _change(box, op, order)
            wireless.tell(box.link, "done", number)
    except OSError as e:
        wireless.tell(box.link, "failed", number, str(e.errno or 0), e.strerror or str(e))
    except ValueError as e:  # such as a name that no encoding can hold: not the end of a box
        wireless.tell(box.link, "failed", number, str(errno.EINVAL), str(e))
    finally:
        for fd in (*fds, *opened):
            os.close(fd)


def _run(box: _Box, number: str, order: dict[str, Any], fds: list[int]) -> None:
    argv, env = order["argv"], order["env"]
    program = _find(argv[0], env.get("PATH", os.defpath), order["cwd"])
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in fds]
    os.chdir(order["cwd"])
    try:
        pid = os.posix_spawn(
            program,
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
    box.runs[pid] = number


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

    What belongs to other runs is spared: their programs' descendants and sessions.
    """
    root = next((pid for pid, n in box.runs.items() if n == number), 0)
    if not everything:
        if root:
            os.kill(root, signal)
        return
    if len(box.runs) <= 1:
        _quietly(-1, signal)
        return
    others = {pid for pid, n in box.runs.items() if n != number}
    for _ in range(64):  # as long as something is left that may be forking away
        there = _processes()
        parents = {pid: parent for pid, parent, _ in there}
        doomed = [p for p in there if not _belongs(p, others, parents)]
        if not doomed:
            return
        for pid, _, _ in doomed:
            _quietly(pid, signal)
        _reap(box)


def _quietly(pid: int, signal: int) -> None:
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        return


def _processes() -> list[tuple[int, int, int]]:
    """Return (pid, parent, session) of every process here but this one and those that ended."""
    found = []
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
            found.append((int(name), int(fields[1]), int(fields[3])))
    return found


def _belongs(process: tuple[int, int, int], roots: set[int], parents: dict[int, int]) -> bool:
    pid, _, session = process
    if session in roots:
        return True
    while pid > 1:
        if pid in roots:
            return True
        pid = parents.get(pid, 0)
    return False


def _change(box: _Box, op: str, order: dict[str, Any]) -> None:
    if op == "pause":
        _quietly(-1, _signal.SIGSTOP)
    elif op == "resume":
        _quietly(-1, _signal.SIGCONT)
    elif op in ("mkdir", "remove"):
        directory, _, name = order["path"].rstrip("/").rpartition("/")
        fd = openat.open_in_root(box.root, directory or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            if op == "mkdir":
                os.mkdir(name, 0o755, dir_fd=fd)
            else:
                _remove(fd, name)
        finally:
            os.close(fd)
    else:
        raise OSError(38, f"no such order: {op}")


def _remove(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        os.rmdir(name, dir_fd=directory)
