"""What runs in the guest for the proof of writeback: one writer under io.max, one that syncs.

On each file system a batch group writes through the page cache, with an io.max that only background
flushing can meet: dd itself never waits for the disk. A second group writes 4 KiB and calls fsync.
Told are bytes by group (io.stat) and by device, and the time of each fsync.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bench.qos.inside import ROOT, say, start

DEVICE = "/dev/nullb0"
LIMIT = 2 << 20
"""Bytes a second for batch."""
SIZE_MIB = 64
SECONDS = 5.0
PAUSE = 0.25


def written(group: str, number: str) -> int:
    """Return the bytes that `group` has written to the device."""
    for line in (ROOT / group / "io.stat").read_text().splitlines():
        name, *words = line.split()
        if name == number:
            return int(dict(w.split("=") for w in words).get("wbytes", "0"))
    return 0


def device_bytes() -> int:
    """Return all bytes written to the device (the seventh field of its stat, in sectors)."""
    return int(Path("/sys/block/nullb0/stat").read_text().split()[6]) * 512


def trial(system: str, *, limited: bool) -> None:
    """Measure one file system."""
    number = Path("/sys/block/nullb0/dev").read_text().strip()
    # What ext4 would initialise later, in the background, is nobody's: not in the figures.
    now = ["-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    force = {"ext4": now, "xfs": ["-f"], "btrfs": ["-f"]}[system]
    subprocess.run([f"/usr/bin/mkfs.{system}", "-q", *force, DEVICE], check=True)
    Path("/mnt").mkdir(exist_ok=True)
    subprocess.run(["/bin/busybox", "mount", "-t", system, DEVICE, "/mnt"], check=True)
    (ROOT / "cgroup.subtree_control").write_text("+cpu +io +memory")
    for name in ("web", "batch"):
        (ROOT / name).mkdir()
    if limited:
        (ROOT / "batch/io.max").write_text(f"{number} wbps={LIMIT}")
    before = device_bytes()
    began = time.monotonic()
    writer = start(
        ["/bin/busybox", "dd", "if=/dev/zero", "of=/mnt/big", "bs=64k", f"count={SIZE_MIB * 16}"],
        "batch",
    )
    (ROOT / "web/cgroup.procs").write_text(str(os.getpid()))
    waits = []
    file = os.open("/mnt/small", os.O_WRONLY | os.O_CREAT, 0o644)
    while time.monotonic() - began < SECONDS:
        os.pwrite(file, b"x" * 4096, 0)
        asked = time.monotonic()
        os.fsync(file)
        waits.append(time.monotonic() - asked)
        time.sleep(PAUSE)
    seconds = time.monotonic() - began
    total = device_bytes() - before
    batch, web = written("batch", number), written("web", number)
    os.close(file)
    (ROOT / "cgroup.procs").write_text(str(os.getpid()))
    writer.kill()
    if limited:
        (ROOT / "batch/io.max").write_text(f"{number} wbps=max")
    writer.wait()
    if writer.stdout is not None:
        writer.stdout.close()
    subprocess.run(["/bin/busybox", "umount", "/mnt"], check=True)
    for name in ("web", "batch"):
        (ROOT / name).rmdir()
    say(
        "result",
        system=system,
        limited=limited,
        seconds=seconds,
        total=total,
        batch=batch,
        web=web,
        limit=LIMIT,
        syncs=len(waits),
        longest=max(waits),
        median=sorted(waits)[len(waits) // 2],
    )


def main() -> None:
    """All file systems under a limit, and one without."""
    Path("/proc/sys/vm/dirty_background_bytes").write_text(str(4 << 20))
    trial("ext4", limited=False)
    for system in ("ext4", "xfs", "btrfs"):
        trial(system, limited=True)
    say("end")


if __name__ == "__main__":
    main()
