"""The serial console: its text, and a person at it."""

from __future__ import annotations

import os
import pty
import select
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.lab.serial import attach, last_line, plain, read_log


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("a\r\nb\r\n", "a\nb\n"),
        ("\x1b[2J\x1b[01;01H\x1b[=3h\x1b[0mBdsDxe: loading\r\n", "BdsDxe: loading\n"),
        ("\x1b[0;32m  OK  \x1b[0m] Started", "  OK  ] Started"),
        ("\x1bc\x1b[?7l\x1b[2Jhello", "hello"),
        ("login: \x1b(B\x1b[m", "login: "),
        ("tab\tkept, bell\x07 not", "tab\tkept, bell not"),
        ("größe", "größe"),
    ],
)
def test_console_output_becomes_text(raw: str, text: str) -> None:
    assert plain(raw) == text


@given(st.text())
def test_nothing_unprintable_gets_through(raw: str) -> None:
    assert all(c in "\t\n" or c.isprintable() or c > "\x7f" for c in plain(raw))


@given(st.binary(max_size=200))
def test_any_log_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "console.log"
    path.write_bytes(data)
    assert "\x1b" not in read_log(path)


def test_the_last_line() -> None:
    assert last_line("one\ntwo \n\n  \n") == "two"
    assert last_line("") == ""
    assert len(last_line("x" * 1000)) == 160
    assert read_log(Path("/none")) == ""


def test_a_console_needs_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(read) as stdin, os.fdopen(write, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UsageError, match="needs a terminal"):
            attach("m", tmp_path / "console.sock")


class Terminal:
    """A program under a pseudo-terminal: what it has shown, and keys for it."""

    def __init__(self, code: str, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", code, *words])
        self.shown = b""

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def wait_for(self, text: bytes) -> None:
        end = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.fd, 4096)
                except OSError:
                    assert text in self.shown, self.shown
                    return

    def exit_code(self) -> int:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self.fd, 4096)
                except OSError:
                    break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


Console = tuple[Path, list[bytes], threading.Event]

ATTACH = (
    "import sys; from pathlib import Path; from tegu.errors import TeguError\n"
    "from tegu.lab.serial import attach\n"
    "try: attach('web', Path(sys.argv[1]))\n"
    "except TeguError as e: sys.exit(e.message)\n"
)


@pytest.fixture
def console() -> Iterator[Console]:
    """A machine's console: greets, echoes in capitals, ends at `bye`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield _serve(Path(directory) / "console.sock")


def _serve(path: Path) -> Console:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    heard: list[bytes] = []
    left = threading.Event()

    def serve() -> None:
        line, _ = server.accept()
        line.sendall(b"web login: ")
        with suppress(OSError):  # a person may leave while we answer
            while data := line.recv(100):
                heard.append(data)
                line.sendall(data.upper())
                if b"bye" in b"".join(heard):
                    break
        line.close()
        left.set()
        server.close()

    threading.Thread(target=serve, daemon=True).start()
    return path, heard, left


def test_a_person_at_the_console(console: Console) -> None:
    path, heard, left = console
    terminal = Terminal(ATTACH, str(path))
    terminal.wait_for(b"web login: ")
    assert b"leave with Ctrl-]" in terminal.shown
    terminal.type(b"root\x03")  # Ctrl-C goes to the machine, not to us
    terminal.wait_for(b"ROOT\x03")
    terminal.type(b"x\x1dnever sent")
    assert terminal.exit_code() == 0
    assert left.wait(20)
    assert b"".join(heard) == b"root\x03x"


def test_a_machine_that_ends_ends_the_console(
    console: Console,
) -> None:
    terminal = Terminal(ATTACH, str(console[0]))
    terminal.wait_for(b"login")
    terminal.type(b"bye")
    assert terminal.exit_code() == 0


def test_one_person_at_a_time(console: Console) -> None:
    first = Terminal(ATTACH, str(console[0]))
    first.wait_for(b"login")
    second = Terminal(ATTACH, str(console[0]))
    second.wait_for(b"another `tegu console` is attached to web")
    assert second.exit_code() == 1
    first.type(b"\x1d")
    assert first.exit_code() == 0


def test_a_console_that_is_gone(tmp_path: Path) -> None:
    terminal = Terminal(ATTACH, str(tmp_path / "none"))
    terminal.wait_for(b"cannot reach the console of web: No such file")
    assert terminal.exit_code() == 1
