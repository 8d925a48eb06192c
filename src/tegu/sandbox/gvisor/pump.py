"""Output to files: gVisor writes to a file it was handed at an offset of its own, as nobody else
does. So a program gets a pipe instead, and what comes out of it is written here."""

from __future__ import annotations

import os
import select
import stat

__all__ = ["Pumps"]

_CHUNK = 1 << 16


class Pumps:
    """Pipes that end in files, heard by the one who holds the box."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._targets: dict[int, int] = {}

    def streams(self, fds: list[int]) -> list[int]:
        """Return new descriptors for a program: copies, with pipes for outputs that are files."""
        made = []
        for number, fd in enumerate(fds):
            if number == 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
                made.append(os.dup(fd))
                continue
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            self._targets[reader] = os.dup(fd)
            self._poll.register(reader, select.POLLIN)
            made.append(writer)
        return made

    def pump(self, ready: list[int]) -> None:
        """Carry what is there of the pipes that are ready."""
        for reader in ready:
            if reader in self._targets:
                self._drain(reader)

    def drain(self) -> None:
        """Carry all that is there: a program that ended has written what it wrote."""
        self.pump(list(self._targets))

    def _drain(self, reader: int) -> None:
        target = self._targets[reader]
        while True:
            try:
                data = os.read(reader, _CHUNK)
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
            except BlockingIOError:
                return
            except OSError:
                data = b""  # a full disk: the program gets EPIPE, as it would with a pipe of ours
            if not data:
                self._poll.unregister(reader)
                os.close(reader)
                os.close(self._targets.pop(reader))
                return
