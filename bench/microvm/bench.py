"""How long until a microVM answers, booted and restored, and what does one cost in memory?

The same guest each time: booted by QEMU's ordinary machine (q35 with its firmware and a compressed
kernel), booted as Tegu does (`microvm`, no firmware, an unpacked kernel), and restored from the
saved memory. They take turns. An answer is the guest's first process having taken an order.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.common import Bar, BenchError, BenchResult, machine

from tegu.sandbox.client import Sandbox
from tegu.sandbox.spec import BoxSpec, Limits
from tegu.sandbox.vm import kernel, snapshots
from tegu.sandbox.vm.base import ensure_base, make_disk
from tegu.sandbox.vm.channel import Frames
from tegu.sandbox.vm.driver import Machine
from tegu.sandbox.vm.guest import converse, identity, say_hello
from tegu.sandbox.vm.qemu import Qemu, QemuVm, find_binary
from tegu.sandbox.vm.trial import try_boot

__all__ = ["run"]

SHAPE: dict[str, Any] = {"memory": 128 * 2**20, "disk": 64 * 2**20}
CLONES = 4
APPLETS = ("sh", "cat", "true", "echo")


class Ordinary(Qemu):
    """QEMU's usual machine: firmware, PCI, and the kernel as it lies in /boot."""

    def _arguments(self, machine: Machine, memory: str, more: Any) -> list[str]:
        words = super()._arguments(machine, memory, more)
        usual = ["q35,memory-backend=ram" if w.startswith("microvm") else w for w in words]
        usual = [w.replace("virtio-blk-device", "virtio-blk-pci") for w in usual]
        return [w.replace("virtio-serial-device", "virtio-serial-pci") for w in usual]


@dataclass
class Took:
    """Seconds of wall time and of QEMU's processor time until an answer."""

    wall: float
    cpu: float


def run(quick: bool) -> BenchResult:
    """Measure; needs a kernel for guests (TEGU_GUEST_KERNEL or /boot)."""
    times = 5 if quick else 20
    with tempfile.TemporaryDirectory(prefix="tegu-b") as name:
        return _run(Path(name), times)


class Subject:
    """The guest that is booted, restored and created."""

    def __init__(self, scratch: Path) -> None:
        reason, _ = try_boot("microvm-tcg", scratch / "state")
        if reason:
            raise BenchError(reason)
        self.scratch = scratch
        self.socket = scratch / "s"
        self.tree = str(_tree(scratch / "tree"))
        spec = BoxSpec(self.tree, "microvm-tcg", Limits(**SHAPE))
        self.base = ensure_base(spec, scratch / "state")
        self.machine = Machine(**snapshots.read_manifest(self.base, "base")["machine"])
        path, self.version = find_binary()
        self.ours = Qemu(path, self.version, "tcg")
        self.usual = Ordinary(path, self.version, "tcg")
        self.kernel = kernel.find_kernel()
        self.first: list[float] = []

    def boot(self, driver: Qemu) -> Took:
        """Boot until an answer."""
        fresh = Path(tempfile.mkdtemp(dir=self.scratch))
        disk = make_disk(fresh / "disk", SHAPE["disk"])
        image = self.machine.kernel if driver is self.ours else str(self.kernel.image)
        began = time.monotonic()
        vm = driver.boot(replace(self.machine, kernel=image), fresh / "memory", disk)
        try:
            frames = Frames(vm.channel)
            say_hello(frames, vm, began + 300)
            return _answer(vm, frames, began)
        finally:
            vm.kill()
            os.close(disk)
            shutil.rmtree(fresh)

    def restore(self, keep: list[QemuVm] | None = None) -> Took:
        """Restore until an answer."""
        began = time.monotonic()
        disk = os.open(self.scratch, os.O_TMPFILE | os.O_RDWR, 0o600)
        with (self.base / "disk").open("rb") as saved:
            snapshots.copy_sparse(saved.fileno(), disk)
        vm = self.ours.restore(self.machine, self.base, disk)
        os.close(disk)
        try:
            return _answer(vm, Frames(vm.channel), began)
        finally:
            if keep is None:
                vm.kill()
            else:
                keep.append(vm)

    def create(self) -> Took:
        """Have the service create a box, and run a first program in it."""
        began = time.monotonic()
        with Sandbox.create(self.tree, kind="microvm-tcg", **SHAPE, path=self.socket) as box:
            took = Took(time.monotonic() - began, float("nan"))
            box.run(["/bin/true"]).check()
            self.first.append(time.monotonic() - began)
        return took


def _run(scratch: Path, times: int) -> BenchResult:
    subject = Subject(scratch)
    tools: dict[str, Callable[[], Took]] = {
        "boot, QEMU's q35": lambda: subject.boot(subject.usual),
        "boot, tegu": lambda: subject.boot(subject.ours),
        "restore, tegu": subject.restore,
        "create, tegu's service": subject.create,
    }
    seen: dict[str, list[Took]] = {name: [] for name in tools}
    with _service(subject.socket, scratch / "state"):
        subject.create()
        subject.first.clear()
        for turn in range(times):
            for name, measure in tools.items():
                if not name.startswith("boot") or turn < max(3, times // 4):
                    seen[name].append(measure())
    rows, bars = _judged(seen, _living(subject.restore))
    notes = [
        f"Guests of {SHAPE['memory'] // 2**20} MiB with kernel {subject.kernel.version}, QEMU"
        f" {subject.version}, emulated (TCG). The answer comes after the guest has a random state,"
        " clock and names of its own.",
        f"Memory is the proportional set size of QEMU, the guest's memory in it, with {CLONES} that"
        " were restored from one file.",
        "`create` is Sandbox.create through the supervisor, to a box that takes programs; its first"
        f" /bin/true has ended after {1000 * statistics.median(subject.first):.0f} ms.",
        "Firecracker and Cloud Hypervisor need KVM and were left out.",
    ]
    return BenchResult("microvm", machine(), rows, bars, notes)


@contextmanager
def _service(socket: Path, state: Path) -> Iterator[None]:
    source = str(Path(snapshots.__file__).parents[3])
    ready_r, ready_w = os.pipe()
    program = (
        f"import sys; sys.path.insert(0, {source!r}); from pathlib import Path; "
        "from tegu.sandbox.keeper import keep; "
        f"sys.exit(keep(Path(sys.argv[1]), warm=0, idle_exit=None, ready={ready_w}))"
    )
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, str(socket)],
        env={**os.environ, "TEGU_SANDBOX_STATE": str(state)},
        pass_fds=[ready_w],
    )
    os.close(ready_w)
    try:
        if os.read(ready_r, 1) != b"1":
            raise BenchError("the supervisor did not start")
        yield
    finally:
        os.close(ready_r)
        keeper.terminate()
        keeper.wait(60)


def _living(restored: Callable[[list[QemuVm]], Took]) -> float:
    """Return the median memory, in MiB, of some machines that live at once."""
    living: list[QemuVm] = []
    try:
        for _ in range(CLONES):
            restored(living)
        return statistics.median(_memory(vm.pid) for vm in living)
    finally:
        for vm in living:
            vm.kill()


def _judged(seen: dict[str, list[Took]], memory: float) -> tuple[list[dict[str, Any]], list[Bar]]:
    rows: list[dict[str, Any]] = []
    for name, all_ in seen.items():
        wall = statistics.median(t.wall for t in all_)
        rows.append(
            {
                "until a guest answers": name,
                "p50 ms": 1000 * wall,
                "p99 ms": 1000 * max(t.wall for t in all_),
                "processor ms": None
                if math.isnan(all_[0].cpu)
                else 1000 * statistics.median(t.cpu for t in all_),
                "of restore": wall / statistics.median(t.wall for t in seen["restore, tegu"]),
            }
        )
    by_name = {row["until a guest answers"]: row for row in rows}
    bars = [
        Bar.at_least("boot over restore", by_name["boot, tegu"]["of restore"], 30),
        Bar.at_least("q35's boot over restore", by_name["boot, QEMU's q35"]["of restore"], 30),
        Bar.at_most("MiB of a restored machine", memory, 60),
    ]
    return rows, bars


def _answer(vm: QemuVm, frames: Frames, began: float) -> Took:
    converse(frames, vm, "T", identity("box", 512, 1024), "T")
    wall = time.monotonic() - began
    fields = Path(f"/proc/{vm.pid}/stat").read_text().rpartition(")")[2].split()
    return Took(wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


def _memory(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise BenchError("the kernel does not tell a process's memory")


def _tree(top: Path) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BenchError("busybox is not installed", hint="install busybox-static")
    (top / "bin").mkdir(parents=True)
    (top / "tmp").mkdir()
    shutil.copy(busybox, top / "bin/busybox")
    for name in APPLETS:
        (top / "bin" / name).symlink_to("busybox")
    return top
