"""What the settings of groups cannot show by themselves: who competes with whom, and where.

Weights and cpu.idle count among the children of one group only (cgroup-v2.rst, "Weights"). A batch
group deep below a slice of equal weight still takes that slice's share; this finds such cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tegu.linux.cgroup2 import Hierarchy
from tegu.qos.policy import ClassName

__all__ = ["Leak", "find_leaks"]


@dataclass(frozen=True)
class Leak:
    """A batch group that competes with a latency group under other names: these two."""

    latency: str
    batch: str
    latency_as: str
    batch_as: str

    def words(self) -> str:
        """Say what happens and what to do."""
        return (
            f"{self.batch} competes with {self.latency} as {self.batch_as}, which is no batch"
            f" group: move it out of {self.batch_as}, or match that"
        )


def find_leaks(classes: Mapping[ClassName, Sequence[str]], hierarchy: Hierarchy) -> list[Leak]:
    """Return the pairs in which the batch group's rank is lost on the way up."""
    found = []
    batch = set(classes.get("batch", ()))
    for critical in classes.get("latency", ()):
        for group in sorted(batch):
            ours, theirs = critical.split("/"), group.split("/")
            depth = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            rival, own = "/".join(theirs[: depth + 1]), "/".join(ours[: depth + 1])
            if rival in batch or _idle(rival, hierarchy):
                continue
            found.append(Leak(critical, group, own or "/", rival or "/"))
    return found


def _idle(group: str, hierarchy: Hierarchy) -> bool:
    with suppress(OSError, ValueError):
        return (hierarchy.directory(group) / "cpu.idle").read_text().strip() == "1"
    return False
