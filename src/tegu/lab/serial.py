"""A machine's serial console: what it said, waiting for a line, and a person at the keyboard."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tegu.errors import MachineError, UsageError

__all__ = ["attach", "last_line", "plain", "read_log"]

LEAVE: Final = b"\x1d"
"""Ctrl-], as telnet(1) has it."""

# ECMA-48 control sequences and the two-byte escapes, which boot loaders and login prompts use.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()][0-9A-Za-z]|[ -/]*[0-~])")
_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\x80-\U0010ffff]")


def plain(text: str) -> str:
    """Return console output as text: no escape sequences or control characters, `\\n` line ends."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub("", text)


def read_log(path: Path) -> str:
    """Return the plain text of a console log; an empty string when there is none yet."""
    try:
        return plain(path.read_bytes().decode(errors="replace"))
    except FileNotFoundError:
        return ""


def last_line(text: str) -> str:
    """Return the last line of console text with something on it, at most 160 characters."""
    for line in reversed(text.splitlines()):
        if line.strip():
            return line.strip()[:160]
    return ""


def attach(name: str, console: Path) -> None:
    """Connect the terminal to the console until Ctrl-], or until the machine ends.

    Raises UsageError without a terminal, MachineError when another `tegu console` has it.
    """
    if not sys.stdin.isatty():
        raise UsageError("the console needs a terminal", hint="`tegu console --log` prints the log")
    with _alone(name, console), socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(str(console))
        except OSError as e:
            raise MachineError(f"cannot reach the console of {name}: {e.strerror}") from e
        sys.stderr.write(f"console of {name}; leave with Ctrl-]\r\n")
        with _raw(sys.stdin.fileno()):
            _relay(line, sys.stdin.fileno(), sys.stdout.fileno())
    sys.stderr.write("\r\n")


def _relay(line: socket.socket, keys: int, screen: int) -> None:
    while True:
        ready, _, _ = select.select([line.fileno(), keys], [], [])
        if line.fileno() in ready:
            data = line.recv(4096)
            if not data:
                return
            _write_all(screen, data)
        if keys in ready:
            typed = os.read(keys, 1024)
            before, leave, _ = typed.partition(LEAVE)
            line.sendall(before)
            if leave or not typed:
                return


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def _alone(name: str, console: Path) -> Iterator[None]:
    fd = os.open(f"{console}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise MachineError(f"another `tegu console` is attached to {name}") from e
        yield
    finally:
        os.close(fd)


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
