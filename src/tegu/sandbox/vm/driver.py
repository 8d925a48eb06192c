"""What a machine monitor must do for microVMs, whichever it is."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["BOOT_DEADLINE", "Driver", "Machine", "RunningVm"]

BOOT_DEADLINE = 120.0
"""Seconds that a guest gets to boot; emulated on a busy machine it may need ten."""


@dataclass(frozen=True)
class Machine:
    """What a guest is made of; two machines that are equal can take each other's snapshots.

    `memory` in bytes, `cpus` whole processors; `kernel`, `initrd` and `root` are paths, and
    `root_key` says what is in the root image.
    """

    driver: str
    version: str
    """Of the machine monitor: a snapshot is read by the one that wrote it."""
    accelerator: str
    memory: int
    cpus: int
    kernel: str
    initrd: str
    root: str
    root_key: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class RunningVm(Protocol):
    """A machine that runs, and the channel to the guest's first process."""

    channel: socket.socket
    pid: int

    def save(self, directory: Path) -> None:
        """Stop the machine for good and write "memory" and "state" into `directory`."""

    def pause(self) -> None:
        """Stop its processors."""

    def resume(self) -> None:
        """Let them go on."""

    def watched(self) -> int:
        """Return the descriptor on which news of the machine come."""

    def check(self) -> None:
        """Raise SandboxError when the machine has ended or failed."""

    def kill(self) -> None:
        """End it at once, and wait for that."""


class Driver(Protocol):
    """A machine monitor of this host."""

    name: str
    version: str
    accelerator: str

    def boot(self, machine: Machine, memory: Path, disk: int) -> RunningVm:
        """Start a guest whose memory is the new file `memory`; `disk` is a descriptor."""

    def restore(self, machine: Machine, directory: Path, disk: int) -> RunningVm:
        """Start a guest from what `save` wrote, copying on write; it runs when this returns."""

    def save_copy(self, vm: Any, machine: Machine, directory: Path, disk: int) -> None:
        """Save a machine of `restore` in the same form; it is stopped then, and may go on."""
