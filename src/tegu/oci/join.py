"""Another process in a container that runs: `exec`.

setns(2) with a pidfd enters all namespaces of the first process in one step. The new process has
nothing of ours in it when the container's others first see it: no descriptors, no directory, no
memory that may be read (CVE-2016-9962, CVE-2019-5736, CVE-2024-21626).
"""

from __future__ import annotations

import _socket
import os
import signal
from contextlib import suppress

from tegu.errors import TeguError
from tegu.linux import libc
from tegu.oci import terminal
from tegu.oci.cgroups import Cgroups
from tegu.oci.child import become, give_streams, only_descriptors, stay_alone
from tegu.oci.config import NAMESPACES
from tegu.oci.paths import PROC_SUPER_MAGIC
from tegu.oci.process import Identity, apply_from_outside, start
from tegu.oci.spawn import born
from tegu.oci.state import Container, OciError, write_whole
from tegu.oci.wire import Wire, pair

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["enter"]


def enter(
    container: Container,
    process: dict[str, Any],
    *,
    console_socket: str = "",
    console: _socket.socket | None = None,
    pid_file: str = "",
    preserve: int = 0,
    warn: Callable[[str], None] = lambda _: None,
) -> int:
    """Start `process` (checked) in `container`; returns its pid, a child of ours.

    Raises TeguError.
    """
    with container:
        status = container.status()
        if status not in ("running", "created"):
            raise OciError(f"cannot exec in {container.name}: it is {status}, not running")
        config = container.config()
        groups = Cgroups.of(container.saved.get("cgroups", {}))
        first = container.open_pid()
    identity = Identity(process, config.linux)
    if process.get("terminal") and console is None:
        if not console_socket:
            raise OciError(
                "process.terminal: nobody takes the terminal", hint="give --console-socket"
            )
        console = terminal.connect(console_socket)
    elif console_socket and not process.get("terminal"):
        raise OciError("--console-socket: process.terminal is not set")
    kinds, user = _differing(container.saved["pid"])
    ours, theirs = pair()

    def child() -> None:
        keep = [theirs.fileno(), *range(3, 3 + preserve)]
        keep += [console.fileno()] if console is not None else []
        _process(identity, theirs, console, user, preserve, keep)

    joined = [(kinds, first)]
    pid = 0
    try:
        _affinity(process, "initial")
        stay_alone()  # before the container's processes can see what is born there
        pid = born(0, joined, child)
        theirs.close()
        _lead(pid, container, groups, process, ours, warn)
        if pid_file:
            write_whole(pid_file, str(pid), 0o644)
    except BaseException:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    finally:
        os.close(first)
        ours.close()
    return pid


def _differing(pid: int) -> tuple[int, bool]:
    """Return which namespaces of `pid` are not ours, and whether the user's is one of them."""
    kinds = 0
    for flag, name in NAMESPACES.values():
        try:
            if os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
                kinds |= flag
        except FileNotFoundError:
            continue  # a kernel without that type
    return kinds, bool(kinds & libc.CLONE_NEWUSER)


def _lead(
    pid: int,
    container: Container,
    groups: Cgroups,
    process: dict[str, Any],
    wire: Wire,
    warn: Callable[[str], None],
) -> None:
    try:
        groups.add(pid)
    except OSError:
        # Where the container has made groups below its own (version 2 allows no process then),
        # the new one goes where the first one is.
        _follow(container.saved["pid"], groups, pid)
    apply_from_outside(pid, process)
    _affinity(process, "final", pid)
    wire.tell("go")
    while True:
        word, text = wire.hear()
        if word == "warning":
            warn(text)
        elif word == "":
            return  # its end of the wire went when the program started
        elif word == "error":
            raise OciError(text)


def _follow(first: int, groups: Cgroups, pid: int) -> None:
    with open(f"/proc/{first}/cgroup") as f:
        path = f.read().strip().rpartition("::")[2]
    top = groups.paths.get("", "")
    for _ in range(64):
        if os.path.exists(f"{top}{path}/cgroup.procs"):
            break
        top = os.path.dirname(top)
    try:
        with open(f"{top}{path}/cgroup.procs", "w") as f:
            f.write(str(pid))
    except OSError as e:
        text = (e.strerror or "").lower()
        raise OciError(f"the container's control group takes no process: {text}") from e


def _affinity(process: dict[str, Any], when: str, pid: int = 0) -> None:
    text = process.get("execCPUAffinity", {}).get(when, "")
    if not text:
        return
    field = f"process.execCPUAffinity.{when}"
    cpus: set[int] = set()
    try:
        for part in text.split(","):
            low, _, high = part.partition("-")
            cpus.update(range(int(low), int(high or low) + 1))
        os.sched_setaffinity(pid, cpus)
    except (ValueError, OverflowError) as e:
        raise OciError(f"{field}: {text!r}: as in 0-3,7") from e
    except OSError as e:
        raise OciError(f"{field}: {text}: {(e.strerror or '').lower()}") from e


def _process(
    identity: Identity,
    wire: Wire,
    console: _socket.socket | None,
    user: bool,
    preserve: int,
    keep: list[int],
) -> None:
    """Run in the new process, which is in the container's namespaces already."""
    try:
        stay_alone()
        only_descriptors(keep)
        wire.await_word("go")
        os.setsid()
        if user:
            with suppress(PermissionError):
                os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            stay_alone()
        if identity.label is not None:
            proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            # This /proc is the container's: it must be a real one to say who we are to be.
            if libc.file_system(proc) != PROC_SUPER_MAGIC:
                raise OciError("process.apparmorProfile: /proc in the container is no procfs")
            identity.see_host(proc)
            os.close(proc)
        inner = -1
        if console is not None:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            size = identity.process.get("consoleSize", {})
            outer, inner, name = terminal.open_terminal(root, size)
            terminal.hand_over(console, outer, name)
            os.close(outer)
            os.close(root)
            console.close()
        if inner >= 0:
            terminal.take(inner, identity.uid)
        else:
            give_streams(identity.uid)
        program, env = become(identity, wire)
        libc.close_range(3 + preserve, on_exec=True)
        start(identity, program, env)
    except TeguError as e:
        wire.tell("error", e.message)
    except OSError as e:
        what = f" ({e.filename})" if e.filename else ""
        wire.tell("error", f"{(e.strerror or str(e)).lower()}{what}")
    except BaseException as e:  # noqa: BLE001 - a forked child must not return into the caller
        wire.tell("error", f"internal failure: {type(e).__name__}: {e}")
    finally:
        os._exit(1)
