"""`throttle`: which control groups are held back by their own CPU limit."""

from __future__ import annotations

from typing import Any

from tegu.probe.groups import CgroupNames
from tegu.probe.reading import Reading, groups_below, numbers
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration
from tegu.probe.tool import Settings, top_rows

__all__ = ["Throttling"]


class Throttling(Reading):
    """Which control groups are held back by their own CPU limit, and by how much?

    Groups with a quota (cpu.max; cpu.cfs_quota_us of version 1): in how many of its periods each
    was held back while the probe looked, for how long in all, and what it used of what it may. A
    group that is held back in one period of ten, and uses far less than its quota on average, has
    bursts and not too much work: more quota would cost nothing.
    """

    name = "throttle"
    group = "cpu"
    question = "Which control groups are held back by their own CPU limit, and by how much?"
    facility = "the files cpu.stat and cpu.max of control groups"
    example = "Example: tegu probe throttle --seconds 30"

    def unavailable(self) -> str:
        return "" if CgroupNames("cpu").root is not None else "no cgroup hierarchy is mounted here"

    def look(self, settings: Settings) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, directory in groups_below(CgroupNames("cpu")):
            quota = _quota(directory)
            if quota is not None:
                found[name] = {"cpus": quota, **numbers(directory / "cpu.stat")}
                usage = directory / "cpuacct.usage"  # version 1; nanoseconds
                if "usage_usec" not in found[name] and usage.exists():
                    found[name]["usage_usec"] = int(usage.read_text()) // 1000
        return found

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        rows = []
        for name, now in last.items():
            before = first.get(name, {})

            def grown(key: str, now: Any = now, before: Any = before) -> int:
                return int(max(0, now.get(key, 0) - before.get(key, 0)))

            held_us = grown("throttled_usec") or grown("throttled_time") // 1000
            rows.append(
                {
                    "cgroup": name,
                    "quota_cpus": now["cpus"],
                    "used_cpus": round(grown("usage_usec") / 1e6 / max(seconds, 1e-3), 3),
                    "periods": grown("nr_periods"),
                    "held_periods": grown("nr_throttled"),
                    "held_ns": held_us * 1000,
                }
            )
        return {"groups": rows}

    def tables(self, recording: Recording, top: int) -> list[Table]:
        rows = recording.summary["groups"]
        held = [r for r in rows if r["held_periods"]]
        return [
            Table(
                f"{len(held)} of {len(rows)} groups with a CPU limit were held back"
                f" in {recording.seconds:.1f} s",
                ("cgroup", "may use", "used", "periods", "held back in", "for", "share"),
                [
                    (
                        r["cgroup"],
                        f"{r['quota_cpus']:.2f} CPUs",
                        f"{r['used_cpus']:.2f}",
                        r["periods"],
                        r["held_periods"],
                        duration(r["held_ns"]),
                        f"{100 * r['held_periods'] / max(r['periods'], 1):.0f} %",
                    )
                    for r in top_rows(held, "held_ns", top)
                ],
            )
        ]


def _quota(directory: Any) -> float | None:
    """Return the processors that a group may use; None: it has no limit of its own."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1") or not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)
