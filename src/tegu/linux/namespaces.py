"""Run a function as root of its own user, mount, pid, network, IPC and UTS namespaces.

The function is process 1 there, so that nothing it starts can outlive it; its mounts vanish with
it. Works for root and for a user who has subordinate ids (subuid(5)), with the same ids inside.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import pwd
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tegu.errors import BuildError, StoreError, TeguError, UnsupportedError
from tegu.linux import libc
from tegu.process import CommandError, require, run

__all__ = ["IdMap", "id_map", "run_isolated", "write_id_maps"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_IDS = 65536
_UNSHARE = (
    libc.CLONE_NEWUSER
    | libc.CLONE_NEWNS
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWNET
)


@dataclass(frozen=True)
class IdMap:
    """Ids inside (0 to 65535) and outside, as lines of (inside, outside, count)."""

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]
    privileged: bool


def id_map() -> IdMap:
    """Return the id map this user may have: identity for root, subordinate ids for others.

    Raises UnsupportedError when the user has fewer than 65,535 subordinate ids.
    """
    if os.geteuid() == 0:
        identity = ((0, 0, _IDS),)
        return IdMap(identity, identity, privileged=True)
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    own_uid, own_gid = os.geteuid(), os.getegid()
    uids = ((0, own_uid, 1), (1, _subordinate(Path("/etc/subuid"), user, own_uid), _IDS - 1))
    gids = ((0, own_gid, 1), (1, _subordinate(Path("/etc/subgid"), user, own_uid), _IDS - 1))
    require("newuidmap", package="uidmap")
    return IdMap(uids, gids, privileged=False)


def _subordinate(table: Path, user: str, uid: int) -> int:
    """Return the first id of a range of at least 65,535 that `table` (subuid(5)) gives `user`."""
    try:
        lines = table.read_text().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        fields = line.split(":")
        if len(fields) == 3 and fields[0] in (user, str(uid)) and int(fields[2]) >= _IDS - 1:
            return int(fields[1])
    raise UnsupportedError(
        f"{table} gives {user} no range of {_IDS - 1} subordinate ids",
        hint=f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
    )


class _Wire:
    """Length-prefixed pickles over a pipe, between a process and its own fork."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def send(self, kind: str, value: Any) -> None:
        data = pickle.dumps((kind, value))
        os.write(self.writer, struct.pack("=I", len(data)))
        view = memoryview(data)
        while view:
            view = view[os.write(self.writer, view) :]

    def receive(self) -> tuple[str, Any] | None:
        head = self._read(4)
        if head is None:
            return None
        body = self._read(struct.unpack("=I", head)[0])
        # Both ends are this very program: the pickle comes from our own fork.
        return None if body is None else pickle.loads(body)

    def _read(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            part = os.read(self.reader, size - len(parts))
            if not part:
                return None
            parts += part
        return bytes(parts)


def run_isolated(
    work: Callable[[Callable[[Any], None]], T],
    *,
    on_event: Callable[[Any], None] = lambda _: None,
) -> T:
    """Run `work(report)` in new namespaces and return what it returns.

    `work` may call `report(value)` to hand any picklable value to `on_event` in the caller. A
    TeguError raised inside is raised here again; whatever else goes wrong inside becomes a
    BuildError. If the caller is interrupted, everything inside is killed before this returns.
    """
    ids = id_map()
    wire = _Wire()
    ready_r, ready_w = os.pipe()
    mapped_r, mapped_w = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    first = 0
    child = os.fork()
    if child == 0:
        os.close(wire.reader)
        os.close(ready_r)
        os.close(mapped_w)
        _child(work, wire, ready_w, mapped_r)  # never returns
    os.close(wire.writer)
    os.close(ready_w)
    os.close(mapped_r)
    try:
        if os.read(ready_r, 1) != b"1":
            raise UnsupportedError(
                "this kernel or container refuses user namespaces",
                hint="see user_namespaces(7): sysctl user.max_user_namespaces, "
                "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns",
            )
        write_id_maps(child, ids)
        os.write(mapped_w, b"1")
        first = struct.unpack("=i", os.read(ready_r, 4) or bytes(4))[0]
        while (message := wire.receive()) is not None:
            kind, value = message
            if kind == "event":
                on_event(value)
                continue
            # Process 1 ends by itself after its last word; waiting keeps its times in our account.
            os.waitpid(child, 0)
            child = 0
            if kind == "error":
                raise value
            if kind == "crash":
                raise BuildError(f"internal failure in the build sandbox: {value}")
            result: T = value
            return result
        raise BuildError("the build sandbox was killed", hint="out of memory? see the kernel log")
    finally:
        for fd in (ready_r, mapped_w, wire.reader):
            os.close(fd)
        if child:
            # Killing process 1 kills all inside, and the child ends when that is done.
            with suppress(ProcessLookupError):
                os.kill(first or child, signal.SIGKILL)
            os.waitpid(child, 0)


def write_id_maps(pid: int, ids: IdMap) -> None:
    """Give `pid`'s new user namespace its ids (user_namespaces(7)), with newuidmap(1) if need be.

    Raises UnsupportedError when newuidmap refuses.
    """
    if ids.privileged:
        for name, lines in (("uid_map", ids.uids), ("gid_map", ids.gids)):
            text = "\n".join(f"{i} {o} {n}" for i, o, n in lines)
            Path(f"/proc/{pid}/{name}").write_text(text)
        return
    for program, lines in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
        try:
            run([program, str(pid), *(str(v) for line in lines for v in line)], timeout=10)
        except CommandError as e:
            raise UnsupportedError(f"cannot map subordinate ids: {e.message}") from e


def _child(work: Callable[..., Any], wire: _Wire, ready_w: int, mapped_r: int) -> None:
    """Unshare, wait for the id maps, fork process 1 of the new pid namespace, run `work` there."""
    try:
        libc.parent_death_signal(signal.SIGKILL)
        libc.unshare(_UNSHARE)
        os.write(ready_w, b"1")
        if os.read(mapped_r, 1) != b"1":
            os._exit(1)
        os.close(mapped_r)
        pid = os.fork()
        if pid == 0:
            os.close(ready_w)
            libc.parent_death_signal(signal.SIGKILL)
            _first_process(work, wire)
        os.write(ready_w, struct.pack("=i", pid))
        os.close(ready_w)
        os.close(wire.writer)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    except BaseException:  # noqa: BLE001 - a forked child must never return into the caller
        os._exit(1)


def _first_process(work: Callable[..., Any], wire: _Wire) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        os.setgid(0)
        os.setuid(0)
        os.setgroups([])
        os.umask(0o022)
        libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
        libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
        result = work(lambda value: wire.send("event", value))
        wire.send("result", result)
        code = 0
    except TeguError as e:
        wire.send("error", e)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            _crash(wire, e)
        else:
            text = f"no space left on the disk that holds {e.filename or 'the store'}"
            wire.send("error", StoreError(text, hint="free some with `tegu gc`"))
    except BaseException as e:  # noqa: BLE001 - told to the parent, which reports it
        _crash(wire, e)
    finally:
        os._exit(code)


def _crash(wire: _Wire, e: BaseException) -> None:
    log.debug("inside the namespaces", exc_info=e)
    tail = traceback.extract_tb(e.__traceback__)[-1]
    where = f"{Path(tail.filename).name}:{tail.lineno}"
    wire.send("crash", f"{type(e).__name__}: {e} ({where})")
