"""A function's zygote: the template's Python with imports loaded, forking one invocation each time.

Runs inside the function's own tree and namespaces (tegu.sandbox.fn.zygote). Each fork enters new
mount, pid and network namespaces, gives up all that the zygote may do, and only then hears what
it is called with. What a zygote says to the supervisor is believed of itself only: with load
"early" the author's code runs in here.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal wraps, without enum
import _socket
import gc
import marshal
import os
import select
import sys
from typing import Any

from tegu.linux import libc, loopback
from tegu.linux.clone import fork_into
from tegu.linux.libc import signal_descriptor
from tegu.sandbox import wireless
from tegu.sandbox.fn import invocation
from tegu.sandbox.fn.code import Finder, compile_tree
from tegu.sandbox.fn.native import Forker, find_forker
from tegu.sandbox.fn.zygote import CODE

__all__ = ["main"]

_PAUSE = 8  # milliseconds
_ALWAYS = ("inspect", "json", "linecache", "random", "traceback", "encodings.idna")


class _Zygote:
    def __init__(self, link: _socket.socket, world: dict[str, Any], rules: int) -> None:
        self.link = link
        self.shared = invocation.Shared(world, rules)
        self.spare: list[int] = []
        self.wanted = int(world["spare_networks"])
        self.running: dict[int, str] = {}
        self.forker: Forker | None = None
        if world["compiled"]:
            self.forker = find_forker(
                world, rules, invocation.tmp_options(world), invocation.FIRST_USER
            )


def main(control: int, world_file: int, rules: int) -> None:
    """Load what is to be loaded, say so, then fork invocations until the supervisor goes away."""
    link = _socket.socket(fileno=control)
    with open(world_file, "rb") as f:
        f.seek(0)
        world: dict[str, Any] = marshal.load(f)  # from the supervisor, through its own process
    for fd in (control, rules):
        if fd >= 0 and (fd != rules or world["landlock"]):
            os.set_inheritable(fd, False)
    zygote = _Zygote(link, world, rules if world["landlock"] else -1)
    finder, bad = compile_tree(CODE)
    for name in (*_ALWAYS, *world["imports"]):
        if name.partition(".")[0] not in _own(finder):
            _import(name)
    if bad:
        print("\n".join(bad), file=sys.stderr, flush=True)
    problem = invocation.prepare(zygote.shared, finder, early=world["load"] == "early")
    if not problem and world["load"] == "early":
        problem = _threads()
    if problem:
        wireless.tell(link, "error", problem)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    libc.preload()
    gc.collect()
    gc.freeze()
    gc.disable()
    forks = "python" if zygote.forker is None else "compiled"
    wireless.tell(link, "ready", sys.version.split()[0], forks)
    _serve(zygote)


def _own(finder: Finder) -> set[str]:
    """Return the top-level names that the function's own directory provides."""
    names = {name.partition(".")[0] for name in finder.modules}
    names.update(entry.split(".")[0] for entry in os.listdir(CODE))  # noqa: PTH208
    return names


def _import(name: str) -> None:
    try:
        __import__(name)
    except Exception as e:  # noqa: BLE001 - the invocation meets it again, if it matters
        print(f"not imported ahead: {name}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)


def _threads() -> str:
    """Say what is wrong with a zygote that has threads: a fork does not."""
    count = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if count < 2:
        return ""
    return f"its code starts {count - 1} threads when it is imported, which forks would not have"


def _serve(zygote: _Zygote) -> None:
    link = zygote.link
    ended = signal_descriptor(_signal.SIGCHLD)
    if zygote.forker is not None:
        zygote.forker.serve(link.fileno(), ended)
        invocation.converse(zygote.shared)  # never returns
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        # Network namespaces are made ahead, but not while an invocation may be starting.
        short = len(zygote.spare) < zygote.wanted
        ready = [fd for fd, _ in poll.poll(_PAUSE if short else None)]
        if not ready:
            zygote.spare.append(_network())
        if ended in ready:
            os.read(ended, 4096)
            _reap(zygote)
        if link.fileno() in ready:
            data, fds = wireless.receive(link)
            if not data:
                os._exit(0)
            words = wireless.split(data)
            try:
                _fork(zygote, words[1], int(words[2]), fds)
            except OSError as e:
                reason = f"{e.filename}: " if e.filename else ""
                wireless.tell(link, "failed", words[1], f"{reason}{e.strerror}")
            finally:
                for fd in fds:
                    os.close(fd)


def _network() -> int:
    """Return a descriptor of a new network namespace in which nothing but loopback is up."""
    libc.unshare(libc.CLONE_NEWNET)
    loopback.loopback_up()
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _fork(zygote: _Zygote, number: str, slot: int, fds: list[int]) -> None:
    network = zygote.spare.pop() if zygote.spare else _network()
    try:
        user = invocation.FIRST_USER + slot
        calls, log = fds
        child = fork_into(libc.CLONE_NEWNS | libc.CLONE_NEWPID)
        if child.pid == 0:
            invocation.enter(zygote.shared, calls, log, network, user)
            invocation.converse(zygote.shared)  # never returns
    finally:
        os.close(network)
    zygote.running[child.pid] = number
    wireless.tell(zygote.link, "born", number, fds=[child.pidfd])
    os.close(child.pidfd)


def _reap(zygote: _Zygote) -> None:
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        number = zygote.running.pop(pid, None)
        if number is not None:
            times = f"{usage.ru_utime:.6f}", f"{usage.ru_stime:.6f}", str(usage.ru_maxrss)
            wireless.tell(zygote.link, "ended", number, str(status), *times)
