"""What a QEMU machine is made of, as one value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tegu.definition import Architecture, Firmware
from tegu.errors import UsageError
from tegu.lab.seed import Seed

__all__ = ["BUSES", "AcceleratorChoice", "Bus", "Forward", "Network", "QemuOptions"]

Bus = Literal["virtio-blk", "nvme", "virtio-scsi"]
Network = Literal["user", "isolated", "none"]
AcceleratorChoice = Literal["auto", "kvm", "tcg"]

BUSES: Final[tuple[Bus, ...]] = ("virtio-blk", "nvme", "virtio-scsi")


@dataclass(frozen=True, slots=True)
class Forward:
    """A TCP port of this host (loopback) that leads to a port of the machine; 0: any free one."""

    host: int
    guest: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """Return the forward in `text`, "HOST:GUEST"; UsageError when it is none."""
        match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
        if match is None or int(match[1]) > 65535 or not 0 < int(match[2]) <= 65535:
            raise UsageError(
                f"not a forward: {text!r}", hint="ports as HOST:GUEST, such as 8080:80"
            )
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class QemuOptions:
    """One QEMU machine.

    It boots `image` by its own boot loader, or `kernel` (with `initrd` and the command line
    `append`) directly, with `image` as its disk if there is one. `memory` and `disk_size` are in
    bytes; `disk_size` None keeps the image's. Nothing is ever written to `image`: all goes to a
    layer that is thrown away, or with `persist` kept under that name.

    `network` "user" reaches out through this host, "isolated" can only be reached by SSH and the
    `forwards`, "none" has no network at all. `icount` runs under emulation with one CPU whose
    clock follows the instructions executed instead of the host's load. `extra` is appended to
    QEMU's command line.
    """

    image: Path | None = None
    name: str | None = None
    architecture: Architecture | None = None
    firmware: Firmware = "uefi"
    bus: Bus = "virtio-blk"
    memory: int = 1 << 30
    cpus: int = 2
    disk_size: int | None = None
    network: Network = "user"
    forwards: tuple[Forward, ...] = ()
    seed: Seed | None = None
    persist: bool = False
    accelerator: AcceleratorChoice = "auto"
    icount: bool = False
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse, with UsageError, what does not fit together."""
        if self.image is None and self.kernel is None:
            raise UsageError("a machine needs an image or a kernel to boot")
        if self.kernel is None and (self.initrd is not None or self.append):
            raise UsageError("an initrd or a kernel command line is of use with a kernel only")
        if self.persist and (self.name is None or self.image is None):
            raise UsageError("a persistent machine needs a name and an image")
        if self.memory < 32 << 20:
            raise UsageError(f"{self.memory} bytes of memory are too few for any kernel")
        if self.cpus < 1:
            raise UsageError("a machine needs at least one CPU")
        if self.icount and self.accelerator == "kvm":
            raise UsageError("instruction counting is emulation: it cannot use KVM")
        if self.network == "none" and self.forwards:
            raise UsageError("ports cannot be forwarded to a machine without a network")
