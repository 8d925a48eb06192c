"""Is the cloud kernel quick and small? Ours without an initrd, beside Debian's with its own.

Both start the same program on the same disk, in the guest's own time (`-icount`): from the kernel's
start to the first program of the real root. Ours is what `tegu kernel build` left in the store, or
the package named by TEGU_KERNEL_DEB; nothing is compiled here. The history bench indexes made-up
histories (histories.py).
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.boot import stock
from bench.boot.guest import CPU
from bench.common import Bar, BenchError, BenchResult, machine
from bench.kernel.histories import make_world

from tegu.errors import UnsupportedError
from tegu.kernel import History, Repo, find_missing, last_built
from tegu.process import require
from tegu.process import run as call
from tegu.store import Store

__all__ = ["run"]

MEMORY_MIB = 512
TIMEOUT = 900.0
CMDLINE = "root=/dev/{disk} ro console=ttyS0 quiet init=/sbin/init idle=poll panic=-1"
_SAID = re.compile(r"^bench (boot|MemTotal:|MemAvailable:|idle|version)\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to start: its files, the disk's name in it, and its size on a disk in MiB."""

    name: str
    image: Path
    initrd: Path | None
    disk: str
    size: float


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds to the first program, MiB that are not available to it."""

    seconds: float
    taken: float


def run(quick: bool) -> BenchResult:
    """Start each kernel once when `quick`, else three times in turn."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kernel-", dir=cache) as name:
        scratch = Path(name)
        disk = _disk(scratch)
        kernels = [*_stock(cache, scratch), _ours(scratch)]
        starts: dict[str, list[Start]] = {k.name: [] for k in kernels}
        for _ in range(1 if quick else 3):
            for kernel in kernels:
                starts[kernel.name].append(_start(kernel, disk, scratch))
        history = _history(scratch, quick=quick)
    rows = [_row(k, starts[k.name]) for k in kernels]
    theirs, own = rows[0], rows[-1]
    return BenchResult(
        bench="kernel",
        machine={**machine(), "accelerator": f"TCG, -icount shift=2,sleep=off, -cpu {CPU}"},
        rows=rows,
        bars=[
            Bar.at_most("to PID 1, of stock", own["to PID 1"] / theirs["to PID 1"], 0.30),
            Bar.at_most("size, of stock", own["size"] / theirs["size"], 0.50),
            Bar.at_most("memory taken, of stock", own["memory"] / theirs["memory"], 0.80),
            Bar.at_most("seconds to index 100,000 commits", history.index_seconds, 60),
            Bar.at_least("missing fixes: precision", history.precision, 0.95),
            Bar.at_least("missing fixes: recall", history.recall, 0.95),
        ],
        notes=[
            "Seconds of the guest's time (4 ns an instruction) to the first program of the real "
            f"root; MiB of {MEMORY_MIB} that it cannot have (neither available nor kept free for a "
            "processor); MiB of kernel and modules on a disk.",
            f"{history.commits} commits were read and indexed in {history.wall:.1f} s of the "
            f"host's time, searched in {history.search:.1f} s; scaled to 100,000.",
        ],
    )


def _row(kernel: Kernel, starts: Sequence[Start]) -> dict[str, Any]:
    return {
        "kernel": kernel.name,
        "to PID 1": float(statistics.median(s.seconds for s in starts)),
        "memory": float(statistics.median(s.taken for s in starts)),
        "size": kernel.size,
    }


def _disk(scratch: Path) -> Path:
    """Make an ext4 disk with nothing but the first program."""
    root = scratch / "root"
    for name in ("sbin", "proc", "dev", "sys", "run", "root", "etc"):
        (root / name).mkdir(parents=True)
    source = Path(__file__).with_name("init.c")
    gcc = require("gcc", package="gcc")
    call([gcc, "-O2", "-static", "-o", root / "sbin/init", source], timeout=120)
    disk = scratch / "disk.raw"
    mkfs = require("mkfs.ext4", package="e2fsprogs")
    call([mkfs, "-q", "-F", "-d", root, disk, "64m"], timeout=120)
    return disk


def _stock(cache: Path, scratch: Path) -> list[Kernel]:
    image = stock.build(stock.CLOUD, cache)
    dump = scratch / "stock"
    dump.mkdir()
    # debugfs reads the image in place: no mount, no loop device.
    debugfs = require("debugfs", package="e2fsprogs")
    call([debugfs, "-R", f"rdump /usr/lib/modules {dump}", f"{image.disk}?offset={2**20}"])
    size = _mib(image.kernel) + _mib(dump)
    return [
        Kernel("stock, initrd, virtio-blk", image.kernel, image.initrd, "vda", size),
        Kernel("stock, no initrd, NVMe", image.kernel, None, "nvme0n1", size),
    ]


def _ours(scratch: Path) -> Kernel:
    named = os.environ.get("TEGU_KERNEL_DEB")
    deb = Path(named) if named else last_built(Store.default())
    if deb is None or not deb.is_file():
        raise UnsupportedError(
            "there is no kernel of ours to start",
            hint="run `tegu kernel build` first, or name its package with TEGU_KERNEL_DEB",
        )
    tree = scratch / "ours"
    call(["dpkg-deb", "-x", deb, tree], timeout=300)
    (image,) = (tree / "boot").glob("vmlinuz-*")
    size = _mib(image) + _mib(tree / "usr/lib/modules")
    return Kernel("ours, no initrd, virtio-blk", image, None, "vda", size)


def _mib(path: Path) -> float:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files if not p.is_symlink()) / 2**20


def _start(kernel: Kernel, disk: Path, scratch: Path) -> Start:
    qemu = require("qemu-system-x86_64", package="qemu-system-x86")
    console = scratch / "console"
    console.unlink(missing_ok=True)
    device = "virtio-blk-pci,drive=d" if kernel.disk == "vda" else "nvme,drive=d,serial=bench"
    argv: list[str | Path] = [
        *(qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg,thread=single", "-cpu", CPU, "-smp", "1"),
        *("-icount", "shift=2,sleep=off", "-m", f"{MEMORY_MIB}M"),
        *("-drive", f"file={disk},format=raw,if=none,id=d,snapshot=on", "-device", device),
        *("-serial", f"file:{console}", "-kernel", kernel.image),
        *("-append", CMDLINE.format(disk=kernel.disk)),
    ]
    if kernel.initrd is not None:
        argv += ["-initrd", kernel.initrd]
    call(argv, timeout=TIMEOUT)
    text = console.read_text(errors="replace").replace("\r", "")
    said = dict(_SAID.findall(text))
    if not {"boot", "MemAvailable:", "idle"} <= said.keys():
        raise BenchError(f"{kernel.name} did not start: {' / '.join(text.splitlines()[-3:])}")
    free = int(said["MemAvailable:"]) + int(said["idle"])
    return Start(float(said["boot"]), MEMORY_MIB - free / 1024)


@dataclass(frozen=True, slots=True)
class Indexed:
    """How the index and the search did on a made-up history."""

    commits: int
    wall: float
    search: float
    precision: float
    recall: float

    @property
    def index_seconds(self) -> float:
        return self.wall * 100_000 / self.commits


def _history(scratch: Path, *, quick: bool) -> Indexed:
    size = (1000, 17_000, 3000) if quick else (3000, 76_000, 15_000)
    world = make_world(7, shared=size[0], mainline=size[1], tree=size[2])
    world.maker.write(scratch / "history")
    repo = Repo(scratch / "history")
    started = time.monotonic()
    pair = History(repo, Store(scratch / "store")).pair("mainline", "stable")
    indexed = time.monotonic()
    found = world.changes(m.commit.id for m in find_missing(pair, repo).missing)
    searched = time.monotonic()
    right = len(set(found) & world.truth)
    return Indexed(
        pair.read,
        indexed - started,
        searched - indexed,
        right / len(found),
        right / len(world.truth),
    )
