"""How soon is a machine there? Tegu's server image and a stock Debian 13, first boot.

From the kernel's start to the first login by the key of the user-data, and to multi-user.target, in
the guest's own time (see guest.py); image size, and memory in use after the boot.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.boot import ours, stock
from bench.boot.guest import CPU, MEMORY_MIB, BootImage, Bus, Guest
from bench.boot.login import log_in
from bench.boot.report import COMMAND, Boot, parse
from bench.common import Bar, BenchResult, machine

from tegu.lab.seed import Seed
from tegu.process import require
from tegu.process import run as call

__all__ = ["measure", "run"]

log = logging.getLogger(__name__)

HOSTNAME = "bench"
USER_DATA = """\
#cloud-config
hostname: {hostname}
ssh_authorized_keys:
  - {key}
write_files:
  - path: /etc/bench-boot
    content: from user-data
runcmd:
  - [touch, /var/lib/bench-boot]
"""
BUS: Bus = "virtio-blk"
TIMEOUT = 1800.0
"""Host's seconds for one boot and its report; a minute or two on an idle machine."""

LIMITS = {"login": 0.40, "multi-user": 0.40, "used": 0.70, "qcow2": 0.70, "memory": 0.80}


def run(quick: bool) -> BenchResult:
    """Boot each image once when `quick`, else three times in turn; needs root for the stock one.

    Takes about 8 minutes on two idle cores when quick and nothing is cached.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="boot-", dir=cache) as name:
        scratch = Path(name)
        images = [
            stock.build(stock.CLOUD, cache),
            stock.build(stock.LEAN, cache),
            ours.build(scratch),
        ]
        boots: dict[str, list[Boot]] = {image.name: [] for image in images}
        for _ in range(1 if quick else 3):
            for image in images:
                boots[image.name].append(measure(image, scratch))
    rows = [_row(image, boots[image.name]) for image in images]
    theirs, lean, own = rows
    about = {"accelerator": f"TCG, -icount shift=2,sleep=off, -cpu {CPU}", "memory": MEMORY_MIB}
    return BenchResult(
        bench="boot",
        machine={**machine(), **about, "python": platform.python_version()},
        rows=rows,
        bars=[
            Bar.at_most(f"{figure}, of {theirs['image']}", own[figure] / theirs[figure], limit)
            for figure, limit in LIMITS.items()
        ],
        notes=[
            "Seconds of the guest's time since its kernel started (4 ns an instruction), and MiB; "
            f"median of {1 if quick else 3} first boots from {BUS}, kernel given by QEMU.",
            "stock cloud has the packages and configuration of Debian's own cloud image, stock "
            "lean only what the comparison needs. Ours of lean: "
            + ", ".join(f"{figure} {own[figure] / lean[figure]:.2f}" for figure in LIMITS)
            + ".",
            "The last columns are CPU seconds up to the login, by control group: they say where "
            "the next saving is. kernel: its own start, its threads, and the initrd.",
        ],
    )


def measure(
    image: BootImage,
    scratch: Path,
    *,
    bus: Bus = BUS,
    keep: Callable[[str], None] | None = None,
) -> Boot:
    """Boot `image` once, log in, and return what it says; `keep` gets the whole report."""
    with tempfile.TemporaryDirectory(prefix="guest-", dir=scratch) as name:
        folder = Path(name)
        key = folder / "key"
        call([require("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", key])
        public = (folder / "key.pub").read_text().strip()
        text = USER_DATA.format(hostname=HOSTNAME, key=public)
        seed = Seed(user=image.user, hostname=HOSTNAME, instance="bench", user_data=text.encode())
        seed.write(folder / "seed.img")
        with Guest(image, folder / "seed.img", folder, bus) as guest:
            login = log_in(guest, image.user, key, COMMAND, TIMEOUT)
        if keep is not None:
            keep(login.output)
    boot = parse(login.output, HOSTNAME)
    log.info(
        "%s: login %.1f s, multi-user %.1f s (%.0f s of ours)",
        *(image.name, boot.login, boot.multi_user, login.wall),
    )
    return boot


def _row(image: BootImage, boots: Sequence[Boot]) -> dict[str, Any]:
    def middle(figure: Callable[[Boot], float]) -> float:
        return float(statistics.median(figure(boot) for boot in boots))

    def cpu(*names: str) -> float:
        return middle(lambda boot: sum(_cpu(boot, name) for name in names))

    row: dict[str, Any] = {
        "image": image.name,
        "login": middle(lambda b: b.login),
        "multi-user": middle(lambda b: b.multi_user),
        "used": middle(lambda b: b.used),
        "qcow2": image.qcow2,
        "memory": middle(lambda b: b.memory),
        "kernel+initrd": middle(lambda b: b.userspace),
        "init local": middle(lambda b: b.units["cloud-init-local.service"]),
        "init network": middle(lambda b: b.units["cloud-init-network.service"]),
        "sshd": middle(lambda b: b.units["ssh.service"]),
        "init final": middle(lambda b: b.units["cloud-final.service"]),
    }
    groups = {
        "cpu systemd": ("init.scope",),
        "cpu udev": ("system.slice/systemd-udevd.service",),
        "cpu sshd+session": ("system.slice/ssh.service", "user.slice"),
    }
    for title, names in groups.items():
        row[title] = cpu(*names)
    row["cpu cloud-init+others"] = middle(_units) - sum(row[title] for title in groups)
    row["cpu kernel"] = middle(lambda b: _cpu(b, "all") - _units(b))
    return row


def _cpu(boot: Boot, name: str) -> float:
    return boot.cpu.get(name, 0.0)


def _units(boot: Boot) -> float:
    """Return the CPU seconds of all units so far, those that have ended included."""
    return _cpu(boot, "system.slice") + _cpu(boot, "user.slice") + _cpu(boot, "init.scope")
