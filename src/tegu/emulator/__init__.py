"""The machine emulator of this host: which QEMU, what it makes machines of, whether KVM works.

Both halves need it: the lab boots images, the sandbox runs boxes in microVMs. `check_kvm` answers
by a real start and remembers the answer; `Child` is a long-lived process of ours.
"""

from __future__ import annotations

from tegu.emulator.arch import (
    MACHINES,
    MachineFacts,
    facts_for,
    host_architecture,
    tcg_threads,
)
from tegu.emulator.binary import QemuBinary, find_qemu
from tegu.emulator.kvm import Kvm, check_kvm, partial_modules, remember_broken

__all__ = [
    "MACHINES",
    "Kvm",
    "MachineFacts",
    "QemuBinary",
    "check_kvm",
    "facts_for",
    "find_qemu",
    "host_architecture",
    "partial_modules",
    "remember_broken",
    "tcg_threads",
]
