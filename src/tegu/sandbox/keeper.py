"""The process that holds a supervisor: it makes the namespaces, waits, and clears up after it.

The supervisor is process 1 of a pid namespace of its own. When it ends, however it ends, the
kernel kills every box with it, and its mounts vanish with its mount namespace. What is left then
is a socket and control groups, and those the keeper removes; should both be killed at once, the
next start does.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError, UnsupportedError
from tegu.linux import cgroups, id_map, libc, write_id_maps
from tegu.sandbox.state import make_state, state_directory

__all__ = ["keep", "main"]

_NAMESPACES = libc.CLONE_NEWPID | libc.CLONE_NEWNS


def keep(
    path: Path,
    *,
    warm: int,
    idle_exit: float | None,
    ready: int | None = None,
    compiled: bool = True,
) -> int:
    """Serve on the socket `path` until told to stop; returns the supervisor's exit code.

    One byte is written to the descriptor `ready` when clients may come. `warm` is the largest
    number of boxes held ready; after `idle_exit` seconds without client or box it ends by itself.
    `compiled` allows the compiled launcher, where it was built.
    Raises SandboxError when another one serves there, UnsupportedError when the kernel refuses
    namespaces.
    """
    lock = _lock(path)
    listener = _listen(path)
    state = state_directory().absolute()
    os.environ["TEGU_SANDBOX_STATE"] = str(state)
    with suppress(SandboxError, OSError):  # what needs it says so when it is asked for
        make_state(state)
        (state / "images").mkdir(mode=0o755, exist_ok=True)
    try:
        cgroups.step_aside()
        cgroups.sweep()
        return _hold(listener, [warm, idle_exit, ready, os.getpid(), compiled])
    finally:
        listener.close()
        with suppress(FileNotFoundError):
            path.unlink()
        cgroups.sweep()
        os.close(lock)


def _lock(path: Path) -> int:
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise SandboxError(
            f"cannot serve at {path}: {e.filename}: {e.strerror}",
            hint="TEGU_SANDBOX_SOCKET names another place",
        ) from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(fd)
        raise SandboxError(f"a supervisor serves {path} already") from e
    return fd


def _listen(path: Path) -> socket.socket:
    with suppress(FileNotFoundError):
        path.unlink()  # we hold the lock, so that whoever made it is gone
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as e:
        listener.close()
        raise SandboxError(f"cannot listen on {path}: {e.strerror or e}") from e
    finally:
        os.umask(before)
    listener.listen(512)
    return listener


def _hold(listener: socket.socket, settings: list[object]) -> int:
    ids = id_map()
    told_r, told_w = os.pipe2(os.O_CLOEXEC)
    mapped_r, mapped_w = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(mapped_w)
        _enter(listener, mapped_r, told_w, settings, privileged=ids.privileged)
    os.close(told_w)
    os.close(mapped_r)
    try:
        if os.read(told_r, 1) != b"1":
            raise UnsupportedError(
                "this kernel or container refuses namespaces",
                hint="see user_namespaces(7): sysctl user.max_user_namespaces, "
                "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns",
            )
        if not ids.privileged:
            write_id_maps(child, ids)
        os.write(mapped_w, b"1")
        first = int.from_bytes(os.read(told_r, 4), "little")
        if isinstance(settings[2], int):
            os.close(settings[2])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: _pass_on(first, n))
        _, status = os.waitpid(child, 0)
        child = 0
        return os.waitstatus_to_exitcode(status) & 0xFF
    finally:
        os.close(told_r)
        os.close(mapped_w)
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _pass_on(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _enter(
    listener: socket.socket, mapped: int, told: int, settings: list[object], *, privileged: bool
) -> None:
    """In the first child: make the namespaces, start process 1 in them, wait for it."""
    try:
        libc.parent_death_signal(signal.SIGKILL)
        libc.unshare(_NAMESPACES | (0 if privileged else libc.CLONE_NEWUSER))
        os.write(told, b"1")
        if os.read(mapped, 1) != b"1":
            os._exit(1)
        pid = os.fork()
        if pid == 0:
            _become(listener, settings, privileged=privileged)
        os.write(told, pid.to_bytes(4, "little"))
        os.close(told)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        listener.close()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(128 - code if code < 0 else code)
    except BaseException as e:  # noqa: BLE001 - a forked child must never return into the caller
        print(f"tegu: cannot make the supervisor's namespaces: {e}", file=sys.stderr)
        os._exit(1)


def _become(listener: socket.socket, settings: list[object], *, privileged: bool) -> None:
    """Start the supervisor proper, as a fresh program under mounts that it cannot write to."""
    try:
        if not privileged:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        libc.parent_death_signal(signal.SIGKILL)  # a change of ids would undo it
        from tegu.sandbox.quarters import furnish

        state = Path(os.environ["TEGU_SANDBOX_STATE"])
        furnish(state if os.access(state, os.W_OK) else None)
        os.set_inheritable(listener.fileno(), True)
        ready = settings[2]
        if isinstance(ready, int):
            os.set_inheritable(ready, True)
        source = str(Path(__file__).parents[2])
        program = (
            f"import sys; sys.path.insert(0, {source!r}); "
            "from tegu.sandbox.supervisor import main; main(sys.argv[1:])"
        )
        arguments = [str(listener.fileno()), *(str(s) for s in settings), str(int(privileged))]
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", program, *arguments])
    except BaseException as e:  # noqa: BLE001 - see above
        print(f"tegu: cannot start the supervisor: {e}", file=sys.stderr)
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Serve as tegu.sandbox.launch asks: socket, and the descriptor to say ready on."""
    from tegu.errors import TeguError
    from tegu.sandbox.launch import IDLE_EXIT, WARM

    path, ready = arguments
    try:
        sys.exit(keep(Path(path), warm=WARM, idle_exit=IDLE_EXIT, ready=int(ready)))
    except TeguError as e:
        print(e.message, file=sys.stderr)
        sys.exit(e.exit_code)
