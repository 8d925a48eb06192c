"""`mounts`: how many mounts there are, in which namespaces, of what."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tegu.linux.mountinfo import namespaces
from tegu.probe.reading import PROC, Reading, cgroup_of, pids
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Settings, text, top_rows

__all__ = ["Mounts"]


class Mounts(Reading):
    """How many mounts are there, in which namespaces, and what are they?

    Each mount namespace with a process in it, its control group, how many mounts it has, and of
    which kind most are; and the directories below which most mounts are, over all of them. Reading
    /proc/self/mountinfo gets slower with each mount, and so do systemd and all that watch it.
    Namespaces that only an open descriptor holds are not seen.
    """

    name = "mounts"
    group = "system"
    question = "How many mounts are there, in which namespaces, and what are they?"
    facility = "the files mountinfo and ns/mnt of processes in /proc"
    instant = True
    overhead = "one look at the namespace of each process, and one at the mounts of each namespace"
    example = "Example: tegu probe mounts --top 5"

    def look(self, settings: Settings) -> Record:
        spaces, places = [], Counter[str]()
        for space in namespaces(PROC, pids()):
            kinds = Counter(mount.kind for mount in space.mounts)
            for mount in space.mounts:
                parent = mount.mountpoint.rsplit("/", 1)[0] or "/"
                places[parent] += 1
            most = kinds.most_common(1)
            spaces.append(
                {
                    "namespace": space.number,
                    "pid": space.pid,
                    "comm": _comm(space.pid),
                    "cgroup": cgroup_of(space.pid),
                    "mounts": len(space.mounts),
                    "kinds": dict(kinds),
                    "most": f"{most[0][0]} ({most[0][1]})" if most else "",
                }
            )
        return {
            "namespaces": spaces,
            "below": [
                {"directory": text(p.encode(errors="replace")), "mounts": n}
                for p, n in places.items()
            ],
        }

    def compare(self, first: Any, last: Any, seconds: float) -> Record:
        found: Record = last
        return found

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        spaces = summary["namespaces"]
        return [
            Table(
                f"{sum(int(s['mounts']) for s in spaces)} mounts in {len(spaces)} namespaces",
                ("mounts", "most are", "namespace", "process", "pid", "cgroup"),
                [
                    (s["mounts"], s["most"], s["namespace"], s["comm"], s["pid"], s["cgroup"])
                    for s in top_rows(spaces, "mounts", top)
                ],
            ),
            Table(
                "directories with the most mounts in them",
                ("mounts", "directory"),
                [(p["mounts"], p["directory"]) for p in top_rows(summary["below"], "mounts", top)],
            ),
        ]


def _comm(pid: int) -> str:
    try:
        return text((PROC / str(pid) / "comm").read_bytes().rstrip(b"\n"))
    except OSError:
        return ""
