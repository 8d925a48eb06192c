"""`groups`: how many control groups there are, below what, and how many are dead yet there."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tegu.probe.groups import CgroupNames
from tegu.probe.reading import Reading, groups_below, numbers
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings, top_rows

__all__ = ["ControlGroups"]


class ControlGroups(Reading):
    """How many control groups are there, below what, and how many are dead and still there?

    Groups of the memory controller's hierarchy by parent; empty ones are those without a process in
    them or below. With version 2, how many groups that were removed live on below each, because
    something still charged to them is used (page cache, shared memory): each costs memory, and
    time wherever the kernel walks over all groups.
    """

    name = "groups"
    group = "system"
    question = "How many control groups are there, below what; how many are dead and still there?"
    facility = "the tree of cgroupfs, cgroup.stat and cgroup.events, and /proc/cgroups"
    controller = "memory"
    instant = True
    overhead = "one walk over the tree"
    example = "Example: tegu probe groups --top 5"

    def unavailable(self) -> str:
        root = CgroupNames(self.controller).root
        return "" if root is not None else "no cgroup hierarchy is mounted here"

    def look(self, settings: Settings) -> Record:
        names = CgroupNames(self.controller)
        below: Counter[str] = Counter()
        empty: Counter[str] = Counter()
        dying: dict[str, int] = {}
        for name, directory in groups_below(names):
            dying[name] = numbers(directory / "cgroup.stat").get("nr_dying_descendants", 0)
            if name == "/":
                continue
            parent = name.rsplit("/", 1)[0] or "/"
            below[parent] += 1
            empty[parent] += numbers(directory / "cgroup.events").get("populated") == 0
        parents = set(below) | {p for p, n in dying.items() if n}
        return {
            "version": 2 if names.hierarchy == 0 else 1,
            "groups": sum(below.values()),
            "dying": dying.get("/", 0),
            "parents": [
                {
                    "cgroup": p,
                    "children": below[p],
                    "empty": empty[p],
                    "dying_below": dying.get(p, 0),
                }
                for p in parents
            ],
        }

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        found: Record = last
        return found

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        parents = summary["parents"]
        rows = top_rows(parents, "children", top)
        rows += [p for p in top_rows(parents, "dying_below", top) if p not in rows]
        dead = f", {summary['dying']} dead and still there" if summary["version"] == 2 else ""
        return [
            Table(
                f"{summary['groups']} control groups{dead}",
                ("below", "groups", "empty", "dead below"),
                [(p["cgroup"], p["children"], p["empty"], p["dying_below"]) for p in rows],
            )
        ]
