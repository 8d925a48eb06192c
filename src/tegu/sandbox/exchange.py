"""A program's run as a client sees it: pipes and the word of its end, watched together.

Made of descriptors to wait for and what to do when they are ready, so that the plain client
(`wait`, with selectors) and the asyncio one drive the same code.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tegu.errors import SandboxError, TeguError
from tegu.sandbox import wire

__all__ = ["MAX_OUTPUT", "Exchange", "Output", "secret_file"]

_CHUNK = 65536
MAX_OUTPUT = 16 * 2**20
"""Bytes of each of a program's outputs that are kept unless told otherwise."""


class Output:
    """What a program wrote: `most` bytes of each stream; more is read, so that it goes on, and
    dropped (`truncated`)."""

    def __init__(self, most: int) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.truncated = False
        self._most = most

    def heard(self, name: str, data: bytes) -> None:
        """Take what came on "stdout" or "stderr"."""
        kept = self.stdout if name == "stdout" else self.stderr
        room = self._most - len(kept)
        kept += data[:room]
        self.truncated = self.truncated or len(data) > room


def secret_file(value: bytes) -> int:
    """Return a descriptor of a file in memory, sealed, that holds `value` (memfd_create(2))."""
    fd = os.memfd_create("secret", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as f:
            f.write(value)
        os.lseek(fd, 0, os.SEEK_SET)
        import fcntl

        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Exchange:
    """One request that carries a program's stdin, stdout and stderr; `heard` gets its output."""

    def __init__(
        self,
        link: socket.socket,
        request: Mapping[str, Any],
        *,
        data: bytes | None,
        heard: Callable[[str, bytes], None],
        secrets: Sequence[int] = (),
        feed: bool = False,
    ) -> None:
        """Send the request. Stdin is `data` and then ends, unless `feed` keeps it open."""
        self.answer: dict[str, Any] | None = None
        self.error: TeguError | None = None
        self._link = link
        self._heard = heard
        self._feed = feed
        self._data = memoryview(data or b"")
        self._streams: dict[int, str] = {}
        in_r, self.stdin = os.pipe2(os.O_CLOEXEC)
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        err_r, err_w = os.pipe2(os.O_CLOEXEC)
        self._streams = {out_r: "stdout", err_r: "stderr"}
        try:
            wire.send(link, {"n": 1, **request}, [in_r, out_w, err_w, *secrets])
        except OSError as e:
            self.close()
            raise SandboxError("the supervisor has ended") from e
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (in_r, out_w, err_w):
                os.close(fd)
        for fd in (out_r, err_r, self.stdin):
            os.set_blocking(fd, False)
        link.setblocking(False)
        if not feed and not self._data:
            self.end_input()

    @property
    def done(self) -> bool:
        """Whether the program has ended and all of its output was heard."""
        return self.answer is not None or self.error is not None

    def readers(self) -> list[int]:
        """Descriptors to wait for until they can be read."""
        return [self._link.fileno(), *self._streams]

    def writers(self) -> list[int]:
        """Descriptors to wait for until they can be written to."""
        return [self.stdin] if self.stdin >= 0 and self._data else []

    def readable(self, fd: int) -> None:
        """Read what is there."""
        if fd == self._link.fileno():
            self._reply()
        elif fd in self._streams:
            self._read(fd)

    def writable(self, fd: int) -> None:
        """Write what the program takes."""
        try:
            self._data = self._data[os.write(fd, self._data[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._data = memoryview(b"")  # it does not want to hear more
        if not self._data and not self._feed:
            self.end_input()

    def write(self, data: bytes) -> None:
        """Queue more for the program's stdin."""
        self._data = memoryview(bytes(self._data) + data)

    def end_input(self) -> None:
        """Close the program's stdin once all is written."""
        self._feed = False
        if not self._data and self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def _read(self, fd: int) -> bool:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            os.close(fd)
            del self._streams[fd]
            return False
        self._heard(self._streams[fd], data)
        return True

    def _read_pending(self, fd: int) -> None:
        """Read what is there now, and not what is written meanwhile: that may never end."""
        count = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        for _ in range(0, count, _CHUNK):
            if not self._read(fd):
                return

    def _reply(self) -> None:
        try:
            message, fds = wire.receive(self._link)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        for fd in fds:
            os.close(fd)
        if message is not None and message.get("n") != 1:
            return
        # What a process left behind may hold the pipes open for long: read what is there, and go.
        for fd in list(self._streams):
            self._read_pending(fd)
        if message is None:
            self.error = SandboxError("the supervisor has ended", hint="its boxes ended with it")
        elif "error" in message:
            self.error = wire.to_error(message["error"])
            errno = message["error"].get("errno")
            if isinstance(errno, int):
                self.error.errno = errno  # type: ignore[attr-defined]
        else:
            self.answer = message["ok"]

    def wait(self) -> dict[str, Any]:
        """Drive it to its end; returns the answer or raises the error."""
        try:
            while not self.done:
                with selectors.DefaultSelector() as selector:
                    for fd in self.readers():
                        selector.register(fd, selectors.EVENT_READ)
                    for fd in self.writers():
                        selector.register(fd, selectors.EVENT_WRITE)
                    self._turns(selector)
        finally:
            self.close()
        return self.result()

    def _turns(self, selector: selectors.BaseSelector) -> None:
        """Serve events until what is to be watched changes."""
        watched = (self.readers(), self.writers())
        while not self.done and watched == (self.readers(), self.writers()):
            for key, events in selector.select():
                if events & selectors.EVENT_WRITE and key.fd == self.stdin:
                    self.writable(key.fd)
                elif events & selectors.EVENT_READ:
                    self.readable(key.fd)

    def result(self) -> dict[str, Any]:
        """Return the answer of a finished exchange, or raise its error."""
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    def close(self) -> None:
        """Let go of all descriptors; a program that still runs is killed by the supervisor."""
        for fd in (*self._streams, self.stdin):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self._streams = {}
        self.stdin = -1
        self._link.close()
