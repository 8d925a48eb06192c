"""`klog`: what the kernel says, as events with their parts named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tegu.linux.kernel_log import follow, now, parse_line, read_records
from tegu.probe.reading import Reading
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings, text

__all__ = ["KernelLog"]

_ERRORS = 3  # KERN_ERR, include/linux/kern_levels.h


class KernelLog(Reading):
    """What does the kernel say, of whom?

    New lines of the kernel's log that tell of trouble, each with its parts named: kills for lack of
    memory with victim and limit, errors of devices and file systems, lockups, tasks that hang, a
    full table of connections; and all others that the kernel marks as errors. What was said before
    the probe began is `dmesg`'s.
    """

    name = "klog"
    group = "system"
    question = "What does the kernel say, of whom?"
    facility = "/dev/kmsg (Documentation/ABI/testing/dev-kmsg)"
    overhead = "a read of what is new, ten times a second"
    example = "Example: tegu probe klog --seconds 0 --json"

    def __init__(self) -> None:
        self._fd = -1
        self._seen: Counter[str] = Counter()
        self._read = 0

    def unavailable(self) -> str:
        try:
            os.close(follow())
        except OSError as e:
            return f"/dev/kmsg cannot be read: {e.strerror}"
        return ""

    def look(self, settings: Settings) -> dict[str, Any]:
        if self._fd < 0:
            self._fd, self._read = follow(new=True), 0
            self._seen.clear()
            return {}
        os.close(self._fd)
        self._fd = -1
        return {"events": dict(self._seen), "lines": self._read}

    def between(self) -> Iterator[Record]:
        for record in read_records(self._fd):
            self._read += 1
            event = parse_line(record, worst=_ERRORS)
            if event is not None:
                self._seen[event.kind] += 1
                yield {
                    "kind": event.kind,
                    "text": text(event.text.encode()),
                    "about": event.about,
                    "age_seconds": round(now() - event.at, 3),
                }

    def lines(self, event: Record) -> list[str]:
        return [f"{event['kind']}: {event['text']}"]

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        found: Record = last
        return found

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        return [
            Table(
                f"the kernel said {summary['lines']} lines in {recording.seconds:.1f} s",
                ("kind", "times"),
                sorted(summary["events"].items())[:top],
            )
        ]
