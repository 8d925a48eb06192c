"""Before a function's zygote: namespaces, the tree that it stands in, and what it gives up.

The supervisor starts this with `python -I -S`, one for each version of a function. It enters a
user namespace of its own, makes a pid namespace, and in that starts the template's Python with
tegu.sandbox.fn.runtime, already confined. It waits above it; when it ends, all of it ends.

That Python is root of a second user namespace, below the first: so the mounts of its tree are those
of someone mightier, and it can neither make them writable nor look below them (mount_namespaces(7),
"Restrictions on mount namespaces").

The runtime is process 2 of its namespace, and its forks are process 1 of theirs: libraries that
tell a fork by its pid, as OpenSSL's random generator does, see another one.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal wraps, without enum
import _socket
import fcntl
import marshal
import os
import resource
from typing import Any

from tegu.linux import confine, landlock, libc, loopback, mountapi
from tegu.sandbox import wireless
from tegu.sandbox.devices import attach_devices
from tegu.sandbox.inside import host_name

__all__ = ["CODE", "INTERPRETER", "LIBRARY", "main"]

CODE = "/fn"
LIBRARY = "/run/tegu"
"""Where a function's tree has its code, and this package."""
INTERPRETER = "/usr/bin/python3"
_STAGE = "/tmp"  # any directory that is always there; covered here only, never changed
_LINK, _WORLD, _RULES = 3, 4, 5
_MARSHAL = 4  # the format that every Python since 3.4 reads
_BOOT = f"""
import os, sys
if sys.version_info < (3, 11):
    os.write({_LINK}, b"error\\0the template's Python is older than 3.11")
    sys.exit(1)
sys.path.append({LIBRARY!r})
from tegu.sandbox.fn.runtime import main
main({_LINK}, {_WORLD}, {_RULES})
"""
_OWN = libc.CLONE_NEWPID | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
_SHARED = libc.CLONE_NEWNS | libc.CLONE_NEWCGROUP
_SECOND = libc.CLONE_NEWUSER | libc.CLONE_NEWNS | libc.CLONE_NEWNET
# In two ranges: a user's own id and subordinate ids are two, and a range may not span them.
_ALL_IDS = b"0 0 1\n1 1 65535"
_PR_SET_DUMPABLE = 4


def main(control: int) -> None:
    """Start a function's runtime for the supervisor at the other end of `control`, and wait."""
    libc.close_range(control + 1)
    link = _socket.socket(fileno=control)
    try:
        plan, fds = _enter(link)
        libc.unshare(_OWN | _SHARED)
        host_name("fn")
        first = _fork(_reap)
        there_r, there_w = os.pipe()
        mapped_r, mapped_w = os.pipe()
        runtime = _fork(lambda: _become(link, plan, fds, there_w, mapped_r))
        os.close(there_w)
        if os.read(there_r, 1) == b"1":
            _map(runtime)
            os.write(mapped_w, b"1")
        os.close(mapped_w)
    except OSError as e:
        wireless.tell(link, "error", f"{e.filename or 'zygote'}: {e.strerror}")
        return
    link.close()
    for fd in fds:
        os.close(fd)
    _, status = os.waitpid(runtime, 0)
    os.kill(first, _signal.SIGKILL)
    os._exit(0 if status == 0 else 1)


def _enter(link: _socket.socket) -> tuple[dict[str, Any], list[int]]:
    libc.unshare(libc.CLONE_NEWUSER)
    wireless.tell(link, "mapme")
    data, fds = wireless.receive(link)
    if not data:
        raise SystemExit(0)
    # The supervisor, which wrote this, is the same program: marshal is safe from it.
    with open(fds.pop(0), "rb") as f:  # noqa: PTH123
        f.seek(0)
        plan: dict[str, Any] = marshal.load(f)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])
    os.umask(0o022)
    return plan, fds


def _map(pid: int) -> None:
    """Give a process's user namespace the ids of this one's."""
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, _ALL_IDS)
        finally:
            os.close(fd)


def _fork(work: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        libc.parent_death_signal(_signal.SIGKILL)
        work()
    finally:
        os._exit(1)  # a fork must never return into its parent's code
    return 0


def _reap() -> None:
    """Be process 1: wait for what lost its parent, until all are killed."""
    libc.close_range(0)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGCHLD])
    while True:
        _signal.sigwait([_signal.SIGCHLD])
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


def _become(
    link: _socket.socket, plan: dict[str, Any], fds: list[int], there: int, mapped: int
) -> None:
    try:
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
        _build(plan, fds)
        if not os.access(INTERPRETER, os.X_OK):
            wireless.tell(link, "error", f"the template has no {INTERPRETER}")
            return
        # Changing ids made this process undumpable, and its /proc/PID root's; the ids of its second
        # user namespace are written there.
        libc.prctl(_PR_SET_DUMPABLE, 1)
        libc.unshare(_SECOND)
        os.write(there, b"1")
        if os.read(mapped, 1) != b"1":
            return
        libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
        # The zygote's own; an invocation covers it.
        libc.mount("tmpfs", "/tmp", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "size=16m")
        loopback.loopback_up()
        world = os.memfd_create("world", 0)
        os.write(world, marshal.dumps(plan["world"], _MARSHAL))
        _confine(plan)
        rules = _landlock()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (link.fileno(), world)]
        if rules >= 0:
            high.append(fcntl.fcntl(rules, fcntl.F_DUPFD_CLOEXEC, 64))
        libc.close_range(3, on_exec=True)
        for target, fd in enumerate(high, start=_LINK):
            os.dup2(fd, target)
        os.execve(INTERPRETER, [INTERPRETER, "-I", "-c", _BOOT], plan["environment"])
    except OSError as e:
        wireless.tell(link, "error", f"{e.filename or 'zygote'}: {e.strerror}")


def _landlock() -> int:
    """Return the rule set that invocations are put under; they make devices nowhere."""
    abi = landlock.abi()
    if not abi:
        return -1
    scoped = landlock.SCOPE_SIGNALS | landlock.SCOPE_ABSTRACT_SOCKETS if abi >= 6 else 0
    return landlock.ruleset(landlock.FS_DEVICES, scoped=scoped)


def _confine(plan: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    confine.no_new_privileges()
    confine.keep_capabilities(plan["keep"])
    confine.load_filter(plan["filter"])


def _build(plan: dict[str, Any], fds: list[int]) -> None:
    """Make the tree: the template, read-only, with the code and this package laid in."""
    libc.mount("tmpfs", _STAGE, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=0755,size=32m")
    for name in ("l", "o", "o/u", "o/w", "t"):
        os.mkdir(f"{_STAGE}/{name}")  # noqa: PTH102 - pathlib is not loaded here
    root = f"{_STAGE}/t"
    if plan["root"] is not None:
        mountapi.attach(fds[plan["root"]], f"{_STAGE}/l")
        layers = f"lowerdir={_STAGE}/l,upperdir={_STAGE}/o/u,workdir={_STAGE}/o/w"
        flags = libc.MS_NOSUID | libc.MS_NODEV
        libc.mount("overlay", root, "overlay", flags, f"userxattr,{layers}")
    else:
        libc.mount(root, root, "", libc.MS_BIND)
    for path, kind, content in plan["skeleton"]:
        _lay(root + path, kind, content)
    for path in (CODE, LIBRARY + "/tegu", "/dev", "/proc", "/sys", "/tmp", "/run"):
        os.makedirs(root + path, exist_ok=True)  # noqa: PTH103
    for path, index in plan["mounts"]:
        mountapi.attach(fds[index], root + path)
    made = plan["devices"]
    attach_devices(root + "/dev", None if made is None else fds[made])
    libc.mount("proc", root + "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    mountapi.set_attributes(root, mountapi.MOUNT_ATTR_RDONLY)
    os.chdir(root)
    libc.pivot_root(".", ".")
    libc.umount2(".", libc.MNT_DETACH)
    os.chdir("/")


def _lay(path: str, kind: str, content: Any) -> None:
    if kind == "dir":
        os.makedirs(path, mode=int(content, 8), exist_ok=True)  # noqa: PTH103
        os.chmod(path, int(content, 8))  # noqa: PTH101
    elif kind == "link":
        os.symlink(content, path)  # noqa: PTH211
    else:
        with open(path, "wb") as f:  # noqa: PTH123
            f.write(content)
