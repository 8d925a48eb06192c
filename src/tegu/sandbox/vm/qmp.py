"""QEMU's monitor over a socket that was handed to it at its start (docs/interop/qmp-spec).

A small client of our own: the host half does without the works' packages, and a microVM's start
has no time for an event loop.
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

from tegu.errors import SandboxError

__all__ = ["Monitor"]

_MOST = 1 << 20


class Monitor:
    """The client's end; one command at a time."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._in = bytearray()
        self._events: list[str] = []

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._link.fileno()

    def greet(self, deadline: float) -> None:
        """Take the greeting, and leave negotiation. `deadline` is of time.monotonic."""
        self._next(deadline)
        self.ask("qmp_capabilities", deadline=deadline)

    def ask(
        self, command: str, *, deadline: float, fd: int | None = None, **arguments: object
    ) -> Any:
        """Send a command (with a descriptor beside it) and return its answer.

        Raises SandboxError when QEMU refuses, does not answer in time, or is gone.
        """
        order: dict[str, object] = {"execute": command}
        if arguments:
            order["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        try:
            socket.send_fds(self._link, [json.dumps(order).encode()], [] if fd is None else [fd])
        except OSError as e:
            raise SandboxError(f"QEMU ended before {command}") from e
        while True:
            answer = self._next(deadline, command)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                reason = answer["error"].get("desc", "no reason")
                raise SandboxError(f"QEMU refused {command}: {reason}")

    def wait_migration(self, deadline: float) -> None:
        """Wait until a migration has come to its end. Raises SandboxError when it failed."""
        pause = 0.001
        while True:
            about = self.ask("query-migrate", deadline=deadline)
            status = about.get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise SandboxError(f"QEMU could not save: {about.get('error-desc', status)}")
            if time.monotonic() > deadline:
                raise SandboxError("QEMU did not save the machine in time")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def wait_status(self, deadline: float) -> str:
        """Wait until what comes in is all there; returns the run state then."""
        while True:
            status = str(self.ask("query-status", deadline=deadline)["status"])
            if status != "inmigrate":
                return status
            if time.monotonic() > deadline:
                raise SandboxError("QEMU did not load the machine in time")
            time.sleep(0.001)

    def heard(self) -> list[str]:
        """Return the events that are there. Raises SandboxError when QEMU is gone."""
        while select.select([self._link], [], [], 0)[0]:
            self._next(time.monotonic() + 1)
        events, self._events = self._events, []
        return events

    def _next(self, deadline: float, what: str = "its greeting") -> dict[str, Any]:
        while b"\n" not in self._in:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._link], [], [], left)[0]:
                raise SandboxError(f"QEMU did not answer in time ({what})")
            try:
                data = self._link.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise SandboxError("QEMU ended")
            self._in += data
            if len(self._in) > _MOST:
                raise SandboxError("QEMU's monitor talks nonsense")
        line, _, rest = bytes(self._in).partition(b"\n")
        self._in = bytearray(rest)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise SandboxError("QEMU's monitor talks nonsense")
        if "event" in message:
            self._events.append(str(message["event"]))
        return message
