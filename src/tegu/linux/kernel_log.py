"""The kernel's log as events: who was killed for lack of memory, which device failed, who hung.

Read from /dev/kmsg (Documentation/ABI/testing/dev-kmsg). Words of the kernel change between
releases; each pattern says where its words come from, and a test holds it against real lines.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Event", "follow", "now", "parse_line", "read_log", "read_records"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the kernel said; `at` in seconds since the boot."""

    kind: str
    """oom, io-error, fs-error, soft-lockup, hung-task, conntrack-full, line"""
    at: float
    text: str
    about: dict[str, str] = field(default_factory=dict)


_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # dump_oom_summary(), mm/oom_kill.c, since 5.0
    (
        "oom",
        re.compile(
            r"oom-kill:constraint=(?P<constraint>\w+),(?:.*,oom_memcg=(?P<limit>[^,]*))?"
            r"(?:.*,task_memcg=(?P<cgroup>[^,]*))?.*,task=(?P<comm>.*),pid=(?P<pid>\d+)"
        ),
    ),
    # blk_print_req_error(), block/blk-mq.c
    (
        "io-error",
        re.compile(r"(?P<what>I/O|critical \w+|\w+) error, dev (?P<device>\S+), sector"),
    ),
    # buffer_io_error(), fs/buffer.c
    ("io-error", re.compile(r"Buffer I/O error on dev(?:ice)? (?P<device>[^\s,]+)")),
    # __ext4_error() and its kin, fs/ext4/super.c; xfs_do_force_shutdown(), fs/xfs/xfs_fsops.c
    ("fs-error", re.compile(r"EXT4-fs error \(device (?P<device>[^)\s:]+)\)")),
    ("fs-error", re.compile(r"XFS \((?P<device>[^)]+)\): .*(?:Corruption|shut(?:ting )?down)")),
    ("fs-error", re.compile(r"BTRFS (?:error|critical) \(device (?P<device>[^)\s:]+)")),
    # watchdog_timer_fn(), kernel/watchdog.c
    (
        "soft-lockup",
        re.compile(
            r"BUG: soft lockup - CPU#(?P<cpu>\d+) stuck for (?P<seconds>\d+)s!"
            r" \[(?P<comm>.*):(?P<pid>\d+)\]"
        ),
    ),
    # check_hung_task(), kernel/hung_task.c
    (
        "hung-task",
        re.compile(r"INFO: task (?P<comm>.*):(?P<pid>\d+) blocked for more than (?P<seconds>\d+)"),
    ),
    # __nf_conntrack_alloc(), net/netfilter/nf_conntrack_core.c
    ("conntrack-full", re.compile(r"nf_conntrack: .*table full, dropping packet")),
)


def parse_line(record: str, *, worst: int = -1) -> Event | None:
    """Read one record of /dev/kmsg: `priority,sequence,microseconds,flags;text`.

    What no pattern knows is no event, unless its level is `worst` or worse (3: errors): then its
    kind is "line".
    """
    head, found, rest = record.partition(";")
    words = head.split(",")
    if not found or len(words) < 3 or not words[2].isdigit() or not words[0].isdigit():
        return None
    said = rest.split("\n", 1)[0]
    at = int(words[2]) / 1e6
    if int(words[0]) >> 3 != 0:
        return None  # not the kernel's: any root process may write here
    for kind, pattern in _PATTERNS:
        match = pattern.search(said)
        if match is not None:
            about = {k: v for k, v in match.groupdict().items() if v is not None}
            return Event(kind, at, said, about)
    if int(words[0]) & 7 <= worst:
        return Event("line", at, said)
    return None


def follow(path: str = "/dev/kmsg", *, new: bool = False) -> int:
    """Open the kernel's ring buffer; with `new` only what is said from now on. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if new:
        os.lseek(fd, 0, os.SEEK_END)
    return fd


def read_records(fd: int) -> Iterator[str]:
    """Yield the records that are there and were not read yet."""
    while True:
        try:
            record = os.read(fd, 8192)
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno == errno.EPIPE:
                continue  # overwritten before we came to it: go on with what is left
            return
        if not record:
            return
        yield record.decode(errors="replace")


def read_log(path: str = "/dev/kmsg") -> list[Event]:
    """Return the events in the kernel's ring buffer; none where it may not be read."""
    try:
        fd = follow(path)
    except OSError:
        return []
    try:
        return [event for event in map(parse_line, read_records(fd)) if event is not None]
    finally:
        os.close(fd)


def now() -> float:
    """Return the time that the kernel's log counts, in seconds (it stops while suspended)."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
