"""What a container's maker and its first process tell one another: short messages, in turns."""

from __future__ import annotations

import _socket
import os
from contextlib import suppress

from tegu.oci.state import OciError

__all__ = ["Wire", "pair"]

_MOST = 128 * 1024


class Wire:
    """One end. A message is a word and a text."""

    __slots__ = ("socket",)

    def __init__(self, end: _socket.socket) -> None:
        self.socket = end

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def tell(self, word: str, text: str = "") -> None:
        """Send a message; one that nobody is there for any more is lost."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.send(f"{word} {text}".encode(errors="surrogateescape")[:_MOST])

    def hear(self) -> tuple[str, str]:
        """Return the next message; ("", "") when the other end is closed."""
        try:
            word, _, text = self.socket.recv(_MOST).decode(errors="replace").partition(" ")
        except ConnectionResetError:
            return "", ""
        return word, text

    def await_word(self, word: str) -> str:
        """Wait for a message, return its text. Raises OciError when the other side gave up."""
        heard, text = self.hear()
        if heard != word:
            raise OciError(text or "the other side has ended")
        return text


def pair() -> tuple[Wire, Wire]:
    """Return two ends that are connected."""
    a, b = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    for end in (a, b):
        os.set_inheritable(end.fileno(), False)
    return Wire(a), Wire(b)
