"""What a sandbox uses: samples of processor, memory and disk.

From its control group where it has one with that controller; else from its own /proc, summed over
its processes (proc_pid_stat(5)), which misses what ended between two samples and was not
waited for.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

from tegu.linux import openat
from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.held import Held

__all__ = ["Sample", "sample"]

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """Bytes and seconds; `cpu_percent` is of one processor, since the sample before."""

    time: float
    cpus: float
    cpu_seconds: float
    cpu_percent: float
    memory: int
    memory_total: int
    disk: int
    disk_total: int
    processes: int


async def sample(held: Held) -> Sample:
    """Measure, and keep it with the sandbox. Raises Fault when it has ended."""
    usage = (await held.ask("attach"))["usage"]
    processes, seconds, memory = 0, 0.0, 0
    if not {"cpu_us", "memory", "pids"} <= usage.keys():
        processes, seconds, memory = await _from_proc(held)
    seconds = usage["cpu_us"] / 1e6 if "cpu_us" in usage else seconds
    disk, disk_total = await _disk(held)
    limits = held.wanted.box.limits
    now = time.time()
    before: Sample | None = held.samples[-1] if held.samples else None
    percent = 0.0
    if before is not None and now > before.time:
        percent = max(0.0, (seconds - before.cpu_seconds) / (now - before.time) * 100)
    found = Sample(
        time=now,
        cpus=limits.cpus or float(os.cpu_count() or 1),
        cpu_seconds=seconds,
        cpu_percent=round(percent, 2),
        memory=usage.get("memory", memory),
        memory_total=limits.memory or os.sysconf("SC_PHYS_PAGES") * _PAGE,
        disk=disk,
        disk_total=disk_total,
        processes=usage.get("pids", processes),
    )
    held.samples.append(found)
    return found


async def _directory(held: Held, path: str) -> int:
    _, fds = await held.ask_fd("open", path=path, flags=os.O_RDONLY | os.O_DIRECTORY)
    for extra in fds[1:]:
        os.close(extra)
    if not fds:
        raise Fault("internal", f"{path}: the box gave no descriptor")
    return fds[0]


async def _disk(held: Held) -> tuple[int, int]:
    root = await _directory(held, "/")
    try:
        about = os.fstatvfs(root)
    finally:
        os.close(root)
    return (about.f_blocks - about.f_bfree) * about.f_frsize, about.f_blocks * about.f_frsize


async def _from_proc(held: Held) -> tuple[int, float, int]:
    """Return (processes, CPU seconds with those of children that ended, resident bytes)."""
    proc = await _directory(held, "/proc")
    count, ticks, pages = 0, 0, 0
    try:
        if openat.on_kernel_files(proc):
            for name in os.listdir(proc):  # noqa: PTH208 - a descriptor
                if name.isdigit():
                    with suppress(OSError, IndexError, ValueError):
                        fields = _stat(proc, name)
                        ticks += sum(int(fields[i]) for i in (11, 12, 13, 14))
                        pages += int(fields[21])
                        count += 1
    finally:
        os.close(proc)
    return count, ticks / _TICK, pages * _PAGE


def _stat(proc: int, name: str) -> list[bytes]:
    fd = os.open(f"{name}/stat", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=proc)
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)
