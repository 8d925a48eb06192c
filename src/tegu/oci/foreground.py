"""`run` and `exec` for a person or a script that waits: streams, terminal, signals, exit code."""

from __future__ import annotations

import _socket
import os
import select
import signal
from contextlib import suppress

from tegu.oci import terminal
from tegu.oci.create import Request, create, destroy, start
from tegu.oci.join import enter

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from tegu.oci.state import Container

__all__ = ["execute", "run"]

_FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")


def run(container: Container, request: Request, *, detach: bool, keep: bool) -> int:
    """Create and start a container; unless detached wait for it, delete it, return its code."""
    from tegu.oci.config import load

    if detach:
        create(container, request)
        try:
            start(container, request.warn)
        except BaseException:
            destroy(container, request.warn, force=True)
            raise
        return 0
    ours = None
    if not request.console_socket and load(request.bundle).process.get("terminal"):
        ours, request.console = _pair()
    pid = create(container, request)
    try:
        outer = _outer(ours, request.console)
        with _Forward(pid):
            start(container, request.warn)
            code = _wait(pid, outer)
    finally:
        if not keep and os.path.isdir(container.directory):  # unless others deleted it
            destroy(container, request.warn, force=True)
    return code


def execute(
    container: Container,
    process: dict[str, Any],
    *,
    console_socket: str,
    pid_file: str,
    preserve: int,
    detach: bool,
    warn: Callable[[str], None],
) -> int:
    """Start another process in a container; unless detached wait for it, return its code."""
    ours = theirs = None
    if process.get("terminal") and not console_socket and not detach:
        ours, theirs = _pair()
    pid = enter(
        container,
        process,
        console_socket=console_socket,
        console=theirs,
        pid_file=pid_file,
        preserve=preserve,
        warn=warn,
    )
    if detach:
        return 0
    outer = _outer(ours, theirs)
    with _Forward(pid):
        return _wait(pid, outer)


def _pair() -> tuple[_socket.socket, _socket.socket]:
    a, b = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    for end in (a, b):
        os.set_inheritable(end.fileno(), False)
    return a, b


def _outer(ours: _socket.socket | None, theirs: _socket.socket | None) -> int:
    if ours is None or theirs is None:
        return -1
    theirs.close()
    outer = terminal.receive(ours)
    ours.close()
    return outer


class _Forward:
    """Hands the signals that end a program on to the container's, while it is entered."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for name in _FORWARDED:
            number = signal.Signals[name]
            self._before[number] = signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _wait(pid: int, outer: int) -> int:
    if outer >= 0:
        _pump(pid, outer)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _pump(pid: int, outer: int) -> None:
    """Copy between our streams and the container's terminal until that is closed."""
    import termios
    import tty

    saved = None
    if os.isatty(0):
        saved = termios.tcgetattr(0)
        tty.setraw(0)
        _copy_size(outer)
        signal.signal(signal.SIGWINCH, lambda *_: _copy_size(outer))
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(outer, select.POLLIN)
    poll.register(process, select.POLLIN)
    poll.register(0, select.POLLIN)
    try:
        ended = False
        while True:
            ready = dict(poll.poll(100 if ended else None))
            if outer in ready:
                try:
                    data = os.read(outer, 65536)
                except OSError:
                    return  # EIO: nobody holds the inner side any more
                _write(1, data)
            elif ended:
                return  # the program has ended; what others still hold open is not waited for
            if 0 in ready:
                data = os.read(0, 65536)
                if data:
                    _write(outer, data)
                else:
                    poll.unregister(0)
                    with suppress(OSError):
                        os.write(outer, b"\x04")  # end of file, as a terminal says it
            if process in ready:
                poll.unregister(process)
                ended = True
    finally:
        os.close(process)
        os.close(outer)
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy_size(outer: int) -> None:
    import fcntl
    import termios

    with suppress(OSError):
        fcntl.ioctl(outer, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
