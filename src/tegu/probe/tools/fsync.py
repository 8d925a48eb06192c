"""`fsync`: who waits for files to reach the disk, and for which."""

from __future__ import annotations

from tegu.linux.seccomp import syscall_number
from tegu.probe.recording import Recording
from tegu.probe.report import Table, duration, histogram, quantile
from tegu.probe.tool import Settings
from tegu.probe.tools.syscalls import SystemCalls

__all__ = ["SlowSync"]

_CALLS = ("fsync", "fdatasync", "msync", "sync_file_range", "syncfs", "sync")
_BITS = 10


class SlowSync(SystemCalls):
    """Who waits for files to reach the disk, and for which?

    The calls fsync, fdatasync, msync, sync_file_range, syncfs and sync: how many, how long, by
    process and control group. Those of the threshold (10 ms) and more are shown with the file. What
    the disk did meanwhile, and for whom, `blkio` says.
    """

    name = "fsync"
    group = "io"
    question = "Who waits for files to reach the disk, and for which?"
    overhead = "0.2 us for each system call of any kind, measured with getppid(2) on 6.18"
    controller = "blkio"
    threshold_ns = 10_000_000
    example = "Example: tegu probe fsync --seconds 30 --threshold 50ms"

    def extra(self, settings: Settings) -> int:
        """Pack the numbers as bpf/syscalls.bpf.c reads them."""
        packed = 0
        for name in _CALLS:
            number = syscall_number(name)
            if number is not None:
                packed = packed << _BITS | number + 1
        return packed

    def tables(self, recording: Recording, top: int) -> list[Table]:
        slots = recording.summary["histogram_us"]
        return [
            histogram(
                f"waits for the disk: {sum(slots)} in {recording.seconds:.1f} s,"
                f" half below {duration(quantile(slots, 0.5))},"
                f" 99 % below {duration(quantile(slots, 0.99))}",
                slots,
            ),
            self._table("who waited longest in all", recording.summary["calls"], "total_ns", top),
        ]
