"""`units`: how many units systemd keeps, of which kind, and what process 1 takes."""

from __future__ import annotations

import os
import re
import resource
from collections import Counter
from pathlib import Path
from typing import Any

from tegu.linux.systemd import list_units, properties
from tegu.probe.reading import PROC, Reading
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings, text, top_rows

__all__ = ["Units", "kind_of_name"]

# Fields of proc_pid_stat(5), counted after the name.
_USER, _SYSTEM, _RSS = 11, 12, 21


class Units(Reading):
    """How many units does systemd keep, of which kind, and what does process 1 take?

    Units by the pattern of their names (numbers and long hexadecimal words as `*`): scopes or
    mounts that somebody makes and nobody removes stand out. Beside them the processor time and
    memory of process 1 while the probe looks: with many units each change costs it more.
    """

    name = "units"
    group = "system"
    question = "How many units does systemd keep, and what does process 1 take?"
    facility = "systemctl(1) and /proc/1/stat"
    overhead = "two lists of units, which process 1 writes"
    example = "Example: tegu probe units --seconds 10"

    def unavailable(self) -> str:
        there = Path("/run/systemd/system").is_dir()  # sd_booted(3)
        return "" if there else "systemd is not process 1 here"

    def look(self, settings: Settings) -> dict[str, Any]:
        fields = (PROC / "1" / "stat").read_text(errors="replace").rpartition(") ")[2].split()
        return {
            "ticks": int(fields[_USER]) + int(fields[_SYSTEM]),
            "rss_bytes": int(fields[_RSS]) * resource.getpagesize(),
            "units": [(u.name, u.active) for u in list_units()],
        }

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        kinds: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        before = Counter(kind_of_name(name) for name, _ in first["units"])
        for name, active in last["units"]:
            kinds[kind_of_name(name)] += 1
            failed[kind_of_name(name)] += active == "failed"
        used = (last["ticks"] - first["ticks"]) / os.sysconf("SC_CLK_TCK")
        jobs = properties("", "NJobs").get("NJobs", "")
        return {
            "units": len(last["units"]),
            "jobs": int(jobs) if jobs.isdigit() else None,
            "cpu_percent": round(100 * used / max(seconds, 1e-3), 1),
            "rss_bytes": last["rss_bytes"],
            "kinds": [
                {"kind": text(k.encode()), "units": n, "more": n - before[k], "failed": failed[k]}
                for k, n in kinds.items()
            ],
        }

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        return [
            Table(
                f"{summary['units']} units; process 1 took {summary['cpu_percent']} % of a"
                f" processor and has {int(summary['rss_bytes']) / 2**20:.1f} MiB",
                ("units", "name", "more by", "failed"),
                [
                    (k["units"], k["kind"], k["more"], k["failed"])
                    for k in top_rows(summary["kinds"], "units", top)
                ],
            )
        ]


def kind_of_name(name: str) -> str:
    """Return a unit's name with what differs between its like as `*`."""
    return re.sub(r"[0-9a-f]{8,}|\d+", "*", name)
