"""The one table of what differs between processor architectures in a virtual machine.

Sources: qemu-system(1), QEMU's docs/system/{i386,arm}, and `-cpu help` of each binary.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from tegu.errors import UnsupportedError

__all__ = ["MACHINES", "MachineFacts", "facts_for", "host_architecture"]

Architecture = Literal["x86-64", "arm64"]
"""As in definitions, which the host half does without."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """How QEMU makes a machine of one architecture.

    `uname` is what platform.machine() says; `board` the `-machine` type; `firmware_board` the
    versioned name that firmware descriptors match against; `console` the kernel's name of the
    first serial port; `bios` says whether QEMU has a legacy BIOS for it.
    """

    name: Architecture
    uname: str
    qemu: str
    package: str
    firmware_package: str
    board: str
    firmware_target: str
    firmware_board: str
    kvm_cpu: str
    tcg_cpu: str
    tcg_cpu_qemu7: str
    console: str
    bios: bool

    def emulated_cpu(self, qemu_version: tuple[int, ...]) -> str:
        """Return the `-cpu` for TCG.

        Before QEMU 8, TCG's cmpxchg16b can double-fault a kernel that uses it for page tables.
        """
        return self.tcg_cpu_qemu7 if qemu_version[:1] <= (7,) else self.tcg_cpu


def tcg_threads(qemu_version: tuple[int, ...], cpus: int) -> str:
    """Return the `thread=` for TCG: "multi", or "single" where several CPUs must take turns.

    Until QEMU 8.1 ("accel/tcg: Always lock pages before translation") one thread could translate
    code that another was writing, and keep what it had read. Linux writes its own code whenever a
    static key changes: now and then a CPU ran the breakpoint of a change that was over, and the
    kernel panicked.
    """
    return "single" if cpus > 1 and qemu_version < (8, 1) else "multi"


MACHINES: Final[Mapping[Architecture, MachineFacts]] = MappingProxyType(
    {
        "x86-64": MachineFacts(
            name="x86-64",
            uname="x86_64",
            qemu="qemu-system-x86_64",
            package="qemu-system-x86",
            firmware_package="ovmf",
            board="q35,smm=off",
            firmware_target="x86_64",
            firmware_board="pc-q35-7.2",
            kvm_cpu="host",
            tcg_cpu="max",
            tcg_cpu_qemu7="max,-cx16",
            console="ttyS0",
            bios=True,
        ),
        "arm64": MachineFacts(
            name="arm64",
            uname="aarch64",
            qemu="qemu-system-aarch64",
            package="qemu-system-arm",
            firmware_package="qemu-efi-aarch64",
            board="virt",
            firmware_target="aarch64",
            firmware_board="virt-7.2",
            kvm_cpu="host",
            tcg_cpu="max",
            tcg_cpu_qemu7="max",
            console="ttyAMA0",
            bios=False,
        ),
    }
)


def host_architecture() -> Architecture:
    """Return this machine's architecture; UnsupportedError for an unknown one."""
    uname = platform.machine()
    for facts in MACHINES.values():
        if facts.uname == uname:
            return facts.name
    raise UnsupportedError(f"no machines for the processor architecture {uname}")


def facts_for(architecture: Architecture | None) -> MachineFacts:
    """Return the row for `architecture`, or for this machine's own when None."""
    return MACHINES[architecture or host_architecture()]
