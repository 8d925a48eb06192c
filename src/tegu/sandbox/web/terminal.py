"""Pseudo-terminals of a box's own (pts(4), ioctl_tty(2))."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios

from tegu.errors import SandboxError
from tegu.sandbox.web.fault import Fault

__all__ = ["prepare", "set_size"]

_TIOCGPTN, _TIOCSPTLCK = 0x80045430, 0x40045431
"""asm-generic/ioctls.h"""


def prepare(terminal: int, rows: int, columns: int) -> str:
    """Make what a box opened as its /dev/ptmx ready; returns the path of its other end.

    Raises SandboxError or Fault when it is none, or a size is out of range.
    """
    try:
        about = os.fstat(terminal)
        if not stat.S_ISCHR(about.st_mode) or about.st_rdev != os.makedev(5, 2):
            raise SandboxError("/dev/ptmx: the box has no terminals")
        fcntl.ioctl(terminal, _TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("I", fcntl.ioctl(terminal, _TIOCGPTN, bytes(4)))
    except OSError as e:
        raise SandboxError(f"/dev/ptmx: {e.strerror}") from e
    set_size(terminal, rows, columns)
    return f"/dev/pts/{number}"


def set_size(terminal: int, rows: int, columns: int) -> None:
    """TIOCSWINSZ; raises Fault when a size is out of range."""
    if not (0 < rows < 2**16 and 0 < columns < 2**16):
        raise Fault("invalid_argument", f"{rows} x {columns} is no size of a terminal")
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
