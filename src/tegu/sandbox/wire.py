"""Messages between clients and the supervisor: one JSON object each, descriptors beside it.

A SOCK_SEQPACKET socket keeps messages whole (unix(7)); SCM_RIGHTS carries descriptors, so that a
program's output never passes through the supervisor.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, StoreError, TeguError, UnsupportedError, UsageError
from tegu.sandbox.wireless import MAX_FDS, MAX_MESSAGE, descriptors

__all__ = ["default_socket", "describe", "receive", "send", "to_error"]

_KINDS: dict[str, type[TeguError]] = {
    "SandboxError": SandboxError,
    "StoreError": StoreError,
    "UnsupportedError": UnsupportedError,
    "UsageError": UsageError,
}


def default_socket() -> Path:
    """Where the supervisor listens: $TEGU_SANDBOX_SOCKET, /run/tegu for root, else the user's."""
    named = os.environ.get("TEGU_SANDBOX_SOCKET")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/run/tegu/sandbox.sock")
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(base) / "tegu" / "sandbox.sock"


def send(link: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; raises UsageError when it is too long."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise UsageError(f"a message of {len(data)} bytes is more than {MAX_MESSAGE}")
    if fds:
        socket.send_fds(link, [data], fds)
    else:
        link.send(data)


def receive(link: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message and its descriptors; None when the other side is gone.

    Raises UsageError when it is no JSON object (its descriptors are closed then).
    """
    # Not socket.recv_fds, which forgets its flags: a descriptor must not slip into a zygote.
    data, ancillary, flags, _ = link.recvmsg(
        MAX_MESSAGE, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
    )
    fds = descriptors(ancillary)
    if not data:
        for fd in fds:  # an empty message may bring some along
            os.close(fd)
        return None, []
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("cut short")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as e:
        for fd in fds:
            os.close(fd)
        raise UsageError(f"not a message: {e}") from e
    return message, fds


def describe(error: TeguError) -> dict[str, Any]:
    """Return an error as plain data."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}


def to_error(data: dict[str, Any]) -> TeguError:
    """Return the error that `describe` wrote down."""
    kind = _KINDS.get(str(data.get("kind")), SandboxError)
    message = str(data.get("message"))
    if kind is UnsupportedError:
        message = message.removeprefix("unsupported: ")
    return kind(message, hint=data.get("hint"))
