"""One command at a time to a QEMU's monitor, through the QMP client that QEMU's developers publish.

QMP is QEMU's docs/interop/qmp-spec; the library is asynchronous, Tegu is not, so every call here
connects, asks and leaves. That also keeps the monitor free for another `tegu` process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient, QMPError

from tegu.errors import MachineError

# The library logs what it also raises; here it is raised, and said once.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

__all__ = ["execute", "forwarded_port", "machine_status"]


def execute(
    socket: Path,
    command: str,
    arguments: Mapping[str, object] | None = None,
    *,
    timeout: float = 10,
) -> Any:
    """Send `command` to the monitor behind `socket` and return its answer.

    Raises MachineError when there is no answer within `timeout` seconds, or QEMU refuses.
    """
    try:
        return asyncio.run(
            asyncio.wait_for(_execute(socket, command, dict(arguments or {})), timeout)
        )
    except TimeoutError as e:
        raise MachineError(f"QEMU's monitor did not answer {command} within {timeout:g} s") from e
    except (QMPError, OSError, EOFError) as e:
        raise MachineError(f"QEMU's monitor failed at {command}: {e}") from e


async def _execute(socket: Path, command: str, arguments: dict[str, object]) -> Any:
    client = QMPClient("tegu")
    await client.connect(str(socket))
    try:
        return await client.execute(command, arguments or None)
    finally:
        with suppress(EOFError, QMPError):  # after `quit` there is nobody to take leave of
            await client.disconnect()


def machine_status(socket: Path) -> str:
    """Return the run state: "running", "paused", "internal-error", "guest-panicked" ..."""
    return str(execute(socket, "query-status")["status"])


def forwarded_port(socket: Path, guest_port: int) -> int:
    """Return the host's TCP port that is forwarded to `guest_port` of the machine.

    A forward with host port 0 lets the kernel choose, so no two machines can be given the same;
    only the human monitor's `info usernet` says which one it was.
    """
    table = str(
        execute(socket, "human-monitor-command", {"command-line": "info usernet"})
    ).splitlines()
    for line in table:
        # "  TCP[HOST_FORWARD]   8   127.0.0.1 34959   10.0.2.15   22   0   0"
        words = line.split()
        if words[:1] == ["TCP[HOST_FORWARD]"] and words[5] == str(guest_port):
            return int(words[3])
    raise MachineError(f"QEMU forwards no port to port {guest_port} of the machine")
