"""`growth`: which processes grow: memory, file descriptors, threads."""

from __future__ import annotations

import os
import resource
from typing import Any

from tegu.probe.reading import PROC, Reading, cgroup_of, pids
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings, text, top_rows

__all__ = ["Growth"]

# Fields of proc_pid_stat(5), counted after the name.
_THREADS, _START, _RSS = 17, 19, 21


class Growth(Reading):
    """Which processes grow: memory, file descriptors, threads?

    Every process at the start and at the end: resident memory, open descriptors beside their limit,
    threads. A process that was not there at the start has grown by all that it has. A leak is what
    grows again in the next look, and the one after.
    """

    name = "growth"
    group = "process"
    question = "Which processes grow: memory, file descriptors, threads?"
    facility = "the files stat, fd and limits of processes in /proc"
    selects = True
    example = "Example: tegu probe growth --seconds 60"

    def look(self, settings: Settings) -> dict[tuple[int, int], dict[str, Any]]:
        found = {}
        page = resource.getpagesize()
        for pid in [settings.pid] if settings.pid else pids():
            try:
                raw = (PROC / str(pid) / "stat").read_text(errors="replace")
                head, _, tail = raw.rpartition(") ")
                fields = tail.split()
                about = {
                    "pid": pid,
                    "comm": text(head.partition("(")[2].encode()),
                    "threads": int(fields[_THREADS]),
                    "rss_bytes": int(fields[_RSS]) * page,
                }
                born = int(fields[_START])
            except (OSError, ValueError, IndexError):
                continue
            group = cgroup_of(pid)
            if settings.cgroup and not _below(group, settings.cgroup):
                continue
            try:
                about["fds"] = len(os.listdir(PROC / str(pid) / "fd"))  # noqa: PTH208 - many
            except OSError:
                about["fds"] = None  # not ours to see
            # A number of a process comes again; together with its birth it does not.
            found[pid, born] = {**about, "cgroup": group}
        return found

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        rows = []
        for key, now in last.items():
            before = first.get(key, {"threads": 0, "rss_bytes": 0, "fds": 0})
            rows.append(
                {
                    **now,
                    "limit": _limit(now["pid"]),
                    "new": key not in first,
                    "more_threads": now["threads"] - before["threads"],
                    "more_bytes": now["rss_bytes"] - before["rss_bytes"],
                    "more_fds": (now["fds"] or 0) - (before["fds"] or 0),
                }
            )
        grown = [r for r in rows if r["more_threads"] or r["more_bytes"] or r["more_fds"]]
        gone = [k for k in first if k not in last]
        return {"processes": len(last), "ended": len(gone), "grown": grown}

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        return [
            Table(
                f"{title}, in {recording.seconds:.1f} s",
                ("process", "pid", "cgroup", "grown by", "now", "new"),
                [
                    (
                        r["comm"],
                        r["pid"],
                        r["cgroup"],
                        f"{r[more] / size:.{digits}f}",
                        f"{(r[now] or 0) / size:.{digits}f}"
                        + (f" of {r['limit']}" if now == "fds" and r["limit"] else ""),
                        "yes" if r["new"] else "",
                    )
                    for r in top_rows(summary["grown"], more, top)
                    if r[more] > 0
                ],
            )
            for title, more, now, size, digits in (
                ("memory (MiB)", "more_bytes", "rss_bytes", 2**20, 1),
                ("file descriptors", "more_fds", "fds", 1, 0),
                ("threads", "more_threads", "threads", 1, 0),
            )
        ]


def _below(group: str, wanted: str) -> bool:
    wanted = "/" + wanted.strip("/")
    return group == wanted or group.startswith(f"{wanted.rstrip('/')}/")


def _limit(pid: int) -> int | None:
    """Return how many descriptors a process may have."""
    try:
        for line in (PROC / str(pid) / "limits").read_text().splitlines():
            if line.startswith("Max open files"):
                return int(line.split()[3])
    except (OSError, ValueError, IndexError):
        return None
    return None
