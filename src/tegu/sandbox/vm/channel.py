"""What the host and a microVM's first process (native/guest.c) say to one another.

Frames over a byte stream: length, kind and run number as little-endian u32, then the bytes. The
guest is not trusted: what it says is bounded here, and believed only about itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from tegu.errors import SandboxError

__all__ = ["CHUNK", "MAX_PAYLOAD", "WINDOW", "Frame", "Frames", "pack"]

WINDOW = 256 * 1024
"""Bytes of one stream that may be on the way and that its reader has not taken (guest.c too)."""
CHUNK = 32 * 1024
MAX_PAYLOAD = 160 * 1024
_HEADER = struct.Struct("<III")

Frame = tuple[str, int, bytes]
"""Kind (one letter, see guest.c), number of the run, content."""


def pack(kind: str, number: int, data: bytes = b"") -> bytes:
    """Return a frame as bytes."""
    return _HEADER.pack(len(data), ord(kind), number) + data


class Frames:
    """The host's end of the stream; never waits."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self._link = link
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._link.fileno()

    @property
    def unsent(self) -> int:
        """Bytes that the guest has not taken yet."""
        return len(self._out)

    def send(self, kind: str, number: int, data: bytes = b"") -> None:
        """Queue a frame, and send what the guest takes."""
        self._out += pack(kind, number, data)
        self.flush()

    def flush(self) -> None:
        """Send what the guest takes. Raises SandboxError when it is gone."""
        while self._out:
            try:
                done = self._link.send(self._out)
            except BlockingIOError:
                return
            except OSError as e:
                raise SandboxError("the virtual machine has ended") from e
            del self._out[:done]

    def receive(self) -> Iterator[Frame]:
        """Yield the frames that are there.

        Raises SandboxError when the stream has ended, or holds what is no frame.
        """
        try:
            data = self._link.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise SandboxError("the virtual machine has ended")
        self._in += data
        at = 0
        while len(self._in) - at >= _HEADER.size:
            length, kind, number = _HEADER.unpack_from(self._in, at)
            if length > MAX_PAYLOAD or not 32 < kind < 127:
                raise SandboxError("the virtual machine talks nonsense: it was killed")
            end = at + _HEADER.size + length
            if len(self._in) < end:
                break
            yield chr(kind), number, bytes(self._in[at + _HEADER.size : end])
            at = end
        del self._in[:at]
