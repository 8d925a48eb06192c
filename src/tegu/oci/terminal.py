"""A container's terminal: made in its own devpts, handed to whoever asked for it.

pty(7), TIOCGPTPEER in ioctl_tty(2); the protocol of --console-socket is runc's: one message with
the terminal's name and its descriptor.
"""

from __future__ import annotations

import _socket
import array
import fcntl
import os
import struct

from tegu.linux import libc
from tegu.oci.paths import find
from tegu.oci.state import OciError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["connect", "hand_over", "open_terminal", "receive", "take"]

_DEVPTS_SUPER_MAGIC = 0x1CD1
_PTMX = (5, 2)
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_TIOCGPTN = 0x80045430
_TIOCSWINSZ = 0x5414
_TIOCSCTTY = 0x540E


def connect(path: str) -> _socket.socket:
    """Connect to the --console-socket `path`. Raises OciError."""
    s = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_CLOEXEC)
        try:
            # An address has 108 bytes, a client's path may have more.
            s.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        finally:
            os.close(directory)
    except OSError as e:
        s.close()
        raise OciError(f"--console-socket {path}: {(e.strerror or '').lower()}") from e
    return s


def open_terminal(root: int, size: dict[str, Any]) -> tuple[int, int, str]:
    """Make a terminal in the devpts at /dev/pts below `root`; returns both sides and its name.

    Raises OciError when there is no devpts.
    """
    try:
        multiplexer = find(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    except OSError as e:
        raise OciError(f"process.terminal: /dev/pts/ptmx: {(e.strerror or '').lower()}") from e
    try:
        if libc.file_system(multiplexer) != _DEVPTS_SUPER_MAGIC or os.fstat(
            multiplexer
        ).st_rdev != os.makedev(*_PTMX):
            raise OciError("process.terminal: /dev/pts is no devpts")
        fcntl.ioctl(multiplexer, _TIOCSPTLCK, struct.pack("i", 0))
        # The peer by number of the open terminal itself: no path, nobody in between.
        terminal = fcntl.ioctl(multiplexer, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        number = struct.unpack("i", fcntl.ioctl(multiplexer, _TIOCGPTN, bytes(4)))[0]
        if size:
            window = struct.pack("HHHH", size["height"], size["width"], 0, 0)
            fcntl.ioctl(multiplexer, _TIOCSWINSZ, window)
    except BaseException:
        os.close(multiplexer)
        raise
    return multiplexer, terminal, f"/dev/pts/{number}"


def hand_over(to: _socket.socket, multiplexer: int, name: str) -> None:
    """Send the terminal's outer side."""
    rights = array.array("i", [multiplexer]).tobytes()
    to.sendmsg([name.encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive(at: _socket.socket) -> int:
    """Return the terminal's outer side that `hand_over` sent. Raises OciError."""
    _, ancillary, _, _ = at.recvmsg(4096, _socket.CMSG_SPACE(4))
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fd: int = struct.unpack("i", data[:4])[0]
            os.set_inheritable(fd, False)
            return fd
    raise OciError("the container's process handed over no terminal")


def take(terminal: int, uid: int) -> None:
    """Make the terminal this session's own, and its streams."""
    fcntl.ioctl(terminal, _TIOCSCTTY, 0)
    os.fchown(terminal, uid, -1)
    for fd in (0, 1, 2):
        os.dup2(terminal, fd)
    os.close(terminal)
