"""How each block device shares its time between groups, chosen per device.

BFQ keeps a latency-critical reader fast where the device itself is slow (docs/benchmarks.md, qos);
it costs a lock per request, too much where a device answers in microseconds. iocost is for those,
with a model of the device set once.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tegu.linux.cgroup2 import Hierarchy
from tegu.process import CommandError, run
from tegu.qos.policy import IoChoice

__all__ = ["Device", "Refusal", "choose", "devices"]

_VIRTUAL = ("loop", "ram", "zram", "dm-", "md", "nbd", "sr", "fd")


@dataclass(frozen=True)
class Refusal:
    """Something that the policy asks for and this machine cannot do, with the reason."""

    what: str
    why: str


@dataclass(frozen=True)
class Device:
    """A whole block device: its name, MAJ:MIN and the schedulers it may have."""

    name: str
    number: str
    directory: Path
    schedulers: tuple[str, ...]
    scheduler: str
    rotational: bool


def devices(sys_block: Path = Path("/sys/block")) -> list[Device]:
    """Return the block devices with a queue of their own."""
    found = []
    for directory in sorted(sys_block.glob("*")) if sys_block.is_dir() else []:
        try:
            if directory.name.startswith(_VIRTUAL) or not int((directory / "size").read_text()):
                continue
            text = (directory / "queue/scheduler").read_text()
            number = (directory / "dev").read_text().strip()
            rotational = (directory / "queue/rotational").read_text().strip() == "1"
        except (OSError, ValueError):
            continue
        names = text.split()
        chosen = next((n[1:-1] for n in names if n.startswith("[")), "none")
        found.append(
            Device(
                directory.name,
                number,
                directory,
                tuple(n.strip("[]") for n in names),
                chosen,
                rotational,
            )
        )
    return found


def choose(device: Device, wish: IoChoice, hierarchy: Hierarchy) -> tuple[IoChoice, str] | Refusal:
    """Return what is to share `device`, and why."""
    if wish == "none":
        return "none", "the policy says so"
    bfq = "bfq" in device.schedulers or _loads_bfq()
    iocost = (hierarchy.root / "io.cost.qos").exists()
    what = f"sharing of {device.name}"
    if wish == "bfq":
        if bfq:
            return "bfq", "the policy says so"
        return Refusal(what, "this kernel has no BFQ scheduler (CONFIG_IOSCHED_BFQ)")
    if wish == "iocost":
        if iocost:
            return "iocost", "the policy says so"
        return Refusal(what, "this kernel has no iocost controller (CONFIG_BLK_CGROUP_IOCOST)")
    fast = device.name.startswith("nvme")
    if fast and iocost:
        return "iocost", "NVMe answers faster than BFQ schedules"
    if bfq:
        return "bfq", "a queue in the kernel is what weights act on"
    if iocost:
        return "iocost", "there is no BFQ"
    return Refusal(what, "this kernel has neither BFQ nor iocost")


def _loads_bfq() -> bool:
    """Whether BFQ is a module that can be loaded; it is then, as it must be to be chosen."""
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if modprobe is None:
        return False
    try:
        run([modprobe, "-q", "bfq"], timeout=30)
    except CommandError:
        return False
    return True
