"""Does KVM really work here? Found out by starting a guest, never by looking at /dev/kvm alone.

A nested or partial KVM may accept a virtual machine and then fail on the first instruction that it
has to emulate, so the guest (tegu.emulator.guests) does what a kernel does when it starts: long
mode with paging, BMI2 and vector instructions in ring 0, timer interrupts.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tegu.emulator.arch import MachineFacts, host_architecture
from tegu.emulator.binary import QemuBinary
from tegu.emulator.child import Child, wait_until
from tegu.emulator.guests import ANSWER, GUESTS
from tegu.errors import TeguError
from tegu.files import write_atomic

__all__ = ["Kvm", "check_kvm", "partial_modules", "probe", "remember_broken"]

log = logging.getLogger(__name__)

DEADLINE: Final = 5.0
"""Seconds that the guest gets; it needs some 0.1 s."""

_DEVICE: Final = Path("/dev/kvm")
_PARTIAL: Final = ("kvm_pvm",)
"""Modules that offer a KVM without the processor's own virtualization."""


@dataclass(frozen=True, slots=True)
class Kvm:
    """`present`: the kernel offers KVM. `works`: a guest ran. `reason`: why not, else empty."""

    present: bool
    works: bool
    reason: str = ""

    def notice(self) -> str | None:
        """Return the one line for a user who gets emulation instead, or None when KVM works."""
        if self.works:
            return None
        if self.present:
            return f"KVM is present but broken ({self.reason}): using emulation"
        return f"no KVM ({self.reason}): using emulation"


def check_kvm(facts: MachineFacts, qemu: QemuBinary, *, device: Path = _DEVICE) -> Kvm:
    """Return whether machines of `facts` can run under KVM.

    The answer of a real start is kept in $XDG_CACHE_HOME/tegu/kvm.json until the next boot of this
    machine or the next QEMU version.
    """
    if host_architecture() != facts.name:
        return Kvm(False, False, f"{facts.name} guests on {host_architecture()}")
    if not device.exists():
        return Kvm(False, False, f"{device} does not exist")
    if not os.access(device, os.R_OK | os.W_OK):
        return Kvm(False, False, f"{device} may not be opened by this user")
    key = _key(facts, qemu)
    known = _cached(key)
    if known is not None:
        return known
    answer = probe(facts, qemu)
    _remember(key, answer)
    return answer


def remember_broken(facts: MachineFacts, qemu: QemuBinary, reason: str) -> None:
    """Note that a real guest failed under KVM although the probe had passed."""
    _remember(_key(facts, qemu), Kvm(True, False, reason))


def partial_modules(modules: Path = Path("/sys/module")) -> list[str]:
    """Return which loaded modules offer a KVM that cannot run every guest: worth a word where
    one has failed."""
    return [name for name in _PARTIAL if (modules / name).is_dir()]


def probe(
    facts: MachineFacts,
    qemu: QemuBinary,
    *,
    accelerator: str = "kvm",
    cpu: str | None = None,
    deadline: float = DEADLINE,
) -> Kvm:
    """Start the guest once and return what came of it; takes at most about `deadline` seconds."""
    with tempfile.TemporaryDirectory(prefix="tegu-kvm-") as directory:
        kernel, said, errors = (Path(directory) / n for n in ("guest", "console", "stderr"))
        kernel.write_bytes(GUESTS[facts.name])
        said.touch()
        child = Child(
            [
                qemu.path,
                *("-machine", facts.board, "-accel", accelerator, "-cpu", cpu or facts.kvm_cpu),
                *("-nodefaults", "-display", "none", "-no-reboot", "-m", "64"),
                *("-serial", f"file:{said}", "-kernel", str(kernel)),
            ],
            stderr=errors,
        )
        try:
            return _judge(child, said, time.monotonic() + deadline, deadline)
        finally:
            child.kill()


def _judge(child: Child, said: Path, end: float, deadline: float) -> Kvm:
    while wait_until(end):
        code = child.returncode()
        if code is None:
            if "internal error" in child.stderr.read_text(errors="replace"):
                return Kvm(True, False, child.complaint() or "KVM internal error")
            continue
        if code == 0 and ANSWER in said.read_text(errors="replace"):
            return Kvm(True, True)
        how = f"QEMU was killed by {signal.Signals(-code).name}" if code < 0 else "the guest failed"
        return Kvm(True, False, child.complaint() or how)
    return Kvm(True, False, f"a guest did not start within {deadline:g} s")


def _key(facts: MachineFacts, qemu: QemuBinary) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    version = ".".join(map(str, qemu.version))
    return f"{os.uname().release} {boot} {qemu.path} {version} {facts.name}"


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tegu" / "kvm.json"


def _cached(key: str) -> Kvm | None:
    try:
        body = json.loads(_cache_file().read_bytes())
        known = body[key]
        return Kvm(bool(known["present"]), bool(known["works"]), str(known["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(key: str, answer: Kvm) -> None:
    # Answers of earlier boots are of no use, so that the file holds one entry.
    try:
        write_atomic(_cache_file(), json.dumps({key: asdict(answer)}, indent=1))
    except (OSError, TeguError) as e:
        log.info("the answer about KVM is not kept: %s", e)
