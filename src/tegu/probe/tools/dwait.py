"""`dwait`: tasks in uninterruptible sleep, which nothing can end but what they wait for."""

from __future__ import annotations

from tegu.probe.tool import Settings
from tegu.probe.tools.offcpu import OffCpu

__all__ = ["UninterruptibleWait"]

_TASK_UNINTERRUPTIBLE = 2  # include/linux/sched.h


class UninterruptibleWait(OffCpu):
    """Who waits in uninterruptible sleep (state D), and on what?

    As `offcpu`, for state D only, the one that raises the load and that kill -9 does not end: a
    slow or dead device, a lock of the kernel, a frozen file system. Waits of 10 ms and more are
    shown one by one, with their stack; those that do not end are listed at the end.
    """

    name = "dwait"
    group = "io"
    question = "Who waits in uninterruptible sleep (state D), and on what?"
    threshold_ns = 10_000_000
    floor_ns = 100_000
    example = "Example: tegu probe dwait --seconds 30 --threshold 100ms"

    def extra(self, settings: Settings) -> int:
        return _TASK_UNINTERRUPTIBLE
