"""`orders`: who asks for large blocks of memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import STACK_DEPTH, Need, Settings, Tool, slots_of, text, top_rows

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["LargeBlocks"]

_KEY = struct.Struct(f"<Q16sII{STACK_DEPTH}Q")
_FROM = 3
"""PAGE_ALLOC_COSTLY_ORDER, include/linux/mmzone.h: from the next on the kernel may give up."""


class LargeBlocks(Tool):
    """Who asks for large blocks of memory, and what is broken up for it?

    Requests for eight pages in a row (order 3) and more, by process, control group, size and the
    place that asks; those that failed apart. Beside them, how often the kernel took a block from
    memory of another kind, by order: that is how memory becomes fragmented, and what `reclaim`
    shows as compaction comes of it.
    """

    name = "orders"
    group = "memory"
    question = "Who asks for large blocks of memory, and what is broken up for it?"
    facility = "the tracepoints mm_page_alloc and mm_page_alloc_extfrag"
    overhead = "a comparison for each block of pages; a stack for each large one"
    object_name = "orders"
    controller = "memory"
    needs = (Need("tracepoint", "mm_page_alloc"), Need("tracepoint", "mm_page_alloc_extfrag"))
    example = "Example: tegu probe orders --seconds 30 --cgroup /system.slice/web.service"

    def extra(self, settings: Settings) -> int:
        return _FROM

    def summarize(self, session: Session) -> Record:
        asked = []
        for key, values in session.map("counts").items():
            cgroup, comm, order, failed, *stack = _KEY.unpack(key)
            asked.append(
                {
                    "comm": text(comm),
                    "cgroup": session.names.groups.name(cgroup),
                    "order": order,
                    "failed": bool(failed),
                    "count": struct.unpack("<Q", values[0])[0],
                    "stack": session.names.symbols.kernel(a for a in stack if a),
                }
            )
        return {"asked": asked, "broken": slots_of(session.map("broken"))}

    def lines(self, event: Record) -> list[str]:
        return []  # there are none

    def tables(self, recording: Recording, top: int) -> list[Table]:
        asked, broken = recording.summary["asked"], recording.summary["broken"]
        failed = sum(int(a["count"]) for a in asked if a["failed"])
        return [
            Table(
                f"{sum(int(a['count']) for a in asked)} requests for 8 pages or more"
                f" in {recording.seconds:.1f} s, {failed} failed",
                ("process", "cgroup", "pages", "times", "failed", "in"),
                [
                    (
                        a["comm"],
                        a["cgroup"],
                        1 << int(a["order"]),
                        a["count"],
                        "yes" if a["failed"] else "",
                        " < ".join(_callers(a["stack"])[:4]),
                    )
                    for a in top_rows(asked, "count", top)
                ],
            ),
            Table(
                f"{sum(broken)} blocks taken from memory of another kind",
                ("pages", "times"),
                [(1 << order, count) for order, count in enumerate(broken) if count],
            ),
        ]


def _callers(stack: list[str]) -> list[str]:
    """Return a stack without the allocator's own functions at its top."""
    for start, frame in enumerate(stack):
        if not frame.startswith(("bpf_", "__traceiter", "__alloc", "alloc_", "__folio_alloc")):
            return stack[start:]
    return stack
