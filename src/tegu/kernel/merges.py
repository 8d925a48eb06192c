"""What a merge brought into a history."""

from __future__ import annotations

from heapq import heappop, heappush

__all__ = ["merged"]


def merged(merge: str, parents: dict[str, tuple[str, ...]], order: dict[str, int]) -> set[str]:
    """Return what a merge brought in: all that its first parent did not have.

    Walks both sides together, children before parents, until nothing is left that only the merged
    side leads to; so it costs the size of the merge rather than of the history.
    """
    first, *others = parents[merge]
    ours: dict[str, bool] = {}
    queue: list[int] = []
    names = {}
    pending = 0  # in the queue, and reached from the merged side only

    def reach(name: str, from_first: bool) -> None:
        nonlocal pending
        if name not in order:
            return
        known = ours.get(name)
        if known is None:
            heappush(queue, order[name])
            names[order[name]] = name
            ours[name] = from_first
            pending += not from_first
        elif from_first and not known:
            ours[name] = True
            pending -= 1

    reach(first, from_first=True)
    for other in others:
        reach(other, from_first=False)
    brought = set()
    while pending:
        name = names[heappop(queue)]
        if not ours[name]:
            pending -= 1
            brought.add(name)
        for parent in parents[name]:
            reach(parent, from_first=ours[name])
    return brought
