"""`reclaim`: who stops to free memory, and who is to blame."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.linux.libbpf import KernelTypes
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table, duration, histogram, indented, who
from tegu.probe.tool import (
    STACK_DEPTH,
    WHO,
    Names,
    Need,
    Tool,
    slots_of,
    top_rows,
    unpack_sums,
    unpack_who,
)

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Reclaim"]

_EVENT = struct.Struct(f"<QQQQIIII{WHO}{STACK_DEPTH}Q{STACK_DEPTH}Q")
_KEY = struct.Struct("<QQQ")
_KINDS = {0: "memory is short", 1: "limit", 2: "compaction"}
_OPTIONAL = {
    "reclaim_compaction_begin": "mm_compaction_begin",
    "reclaim_compaction_end": "mm_compaction_end",
}
_USAGE_FILES = ("memory.current", "memory.usage_in_bytes")
_SECONDS_BETWEEN_LOOKS = 1.0


class Reclaim(Tool):
    """Who stops to free memory before it gets any, and who is to blame?

    Three kinds of stall: the machine is short of memory (direct reclaim), a control group is at its
    limit (memory.max or memory.high: that group is the culprit), memory must be moved to make large
    blocks (compaction). When the machine is short, the suspect is the control group that has grown
    most in the last second or two. Stalls of 1 ms and more are shown one by one, with stacks.
    """

    name = "reclaim"
    group = "memory"
    question = "Who stops to free memory, and whose limit or growth is to blame?"
    facility = (
        "the tracepoints mm_vmscan_direct_reclaim_*, mm_vmscan_memcg_reclaim_* and mm_compaction_*,"
        " and the page counters of control groups"
    )
    overhead = "none while no memory is reclaimed, but the look at each cgroup once a second"
    object_name = "reclaim"
    controller = "memory"
    needs = (
        Need("tracepoint", "mm_vmscan_direct_reclaim_begin"),
        Need("tracepoint", "mm_vmscan_memcg_reclaim_begin"),
        Need("member", "page_counter.usage"),
    )
    threshold_ns = 1_000_000
    example = "Example: tegu probe reclaim --seconds 60 --threshold 5ms"

    def __init__(self) -> None:
        self._looks: list[tuple[float, dict[str, int]]] = []

    def left_out(self, types: KernelTypes) -> list[str]:
        return [p for p, tracepoint in _OPTIONAL.items() if not types.has_tracepoint(tracepoint)]

    def tick(self, session: Session) -> None:
        """Look at what each control group uses, once in a while."""
        now = time.monotonic()
        root = session.names.groups.root
        if root is None or (self._looks and now - self._looks[-1][0] < _SECONDS_BETWEEN_LOOKS):
            return
        self._looks = [*self._looks[-2:], (now, usage(root))]

    def decode(self, data: bytes, names: Names) -> Record:
        values = _EVENT.unpack_from(data)
        at, stalled, culprit, reclaimed, kind, order, depth, user_depth = values[:8]
        task = unpack_who(values[8:12], names)
        stack = values[12 : 12 + STACK_DEPTH][:depth]
        user = values[12 + STACK_DEPTH :][:user_depth]
        found: Record = {
            "at_ns": at,
            "stalled_ns": stalled,
            "kind": _KINDS.get(kind, "?"),
            "order": order,
            "reclaimed_pages": reclaimed,
            "victim": task,
            "culprit": names.groups.name(culprit) if culprit else None,
            "stack": names.symbols.kernel(stack),
            "user_stack": names.symbols.user(task["pid"], user),
        }
        if kind == 0:
            grown = self._grown()
            if grown is not None:
                found["culprit"], found["grew_bytes"] = grown
        return found

    def _grown(self) -> tuple[str, int] | None:
        """Return the group that has grown most since the oldest look, and by how many bytes."""
        if len(self._looks) < 2:
            return None
        before, now = self._looks[0][1], self._looks[-1][1]
        name, growth = max(
            ((n, u - before.get(n, 0)) for n, u in now.items()),
            key=lambda pair: pair[1],
            default=("", 0),
        )
        return (name, growth) if growth > 0 else None

    def summarize(self, session: Session) -> Record:
        groups = session.names.groups
        stalls = []
        for key, values in session.map("pairs").items():
            victim, culprit, kind = _KEY.unpack(key)
            sums = unpack_sums(values)
            stalls.append(
                {
                    "victim": groups.name(victim),
                    "culprit": groups.name(culprit) if culprit else None,
                    "kind": _KINDS.get(kind, "?"),
                    "count": sums.count,
                    "total_ns": sums.total_ns,
                    "max_ns": sums.max_ns,
                }
            )
        grown = self._grown()
        return {
            "histogram_us": slots_of(session.map("histogram")),
            "stalls": stalls,
            "grown": None if grown is None else {"cgroup": grown[0], "bytes": grown[1]},
        }

    def lines(self, event: Record) -> list[str]:
        blame = f" behind the limit of {event['culprit']}" if event["culprit"] else ""
        if "grew_bytes" in event:
            blame = (
                f"; {event['culprit']} has just grown by {int(event['grew_bytes']) / 2**20:.0f} MiB"
            )
        return [
            f"{who(event['victim'])} stalled {duration(event['stalled_ns'])}"
            f" ({event['kind']}, {int(event['reclaimed_pages'])} pages freed){blame}",
            *indented(event["stack"]),
            *indented(event["user_stack"]),
        ]

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        slots = summary["histogram_us"]
        title = f"stalls for memory: {sum(slots)} in {recording.seconds:.1f} s"
        if summary["grown"] and any(slots):
            grown = summary["grown"]
            title += f"; grown most: {grown['cgroup']}, by {int(grown['bytes']) / 2**20:.0f} MiB"
        return [
            histogram(title, slots),
            Table(
                "who stalled, and at whose limit",
                ("victim", "limit of", "kind", "stalls", "total", "longest"),
                [
                    (
                        s["victim"],
                        s["culprit"] or "",
                        s["kind"],
                        s["count"],
                        duration(s["total_ns"]),
                        duration(s["max_ns"]),
                    )
                    for s in top_rows(summary["stalls"], "total_ns", top)
                ],
            ),
        ]


def usage(root: Path) -> dict[str, int]:
    """Return the bytes that each innermost control group below `root` uses."""
    found: dict[str, int] = {}
    pending = [(root, "/")]
    while pending:
        directory, name = pending.pop()
        try:
            below = [d for d in directory.iterdir() if d.is_dir()]
        except OSError:
            continue
        pending.extend((d, f"{name.rstrip('/')}/{d.name}") for d in below)
        if below:
            continue
        for file in _USAGE_FILES:
            try:
                found[name] = int((directory / file).read_text())
                break
            except (OSError, ValueError):
                continue
    return found
