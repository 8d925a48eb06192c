"""Where buffered writes are not charged to who wrote them, so that io.max and weights miss them.

cgroup-v2.rst, "Writeback": it takes the memory and the io controller in one version 2 hierarchy,
and a file system that takes part (SB_I_CGROUPWB in the kernel's source).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.linux.cgroup2 import Hierarchy

__all__ = ["TAKES_PART", "Gap", "find_gaps"]

TAKES_PART = frozenset({"ext2", "ext4", "f2fs", "btrfs", "xfs"})
"""File systems that set SB_I_CGROUPWB in Linux 6.12."""
_NEVER_WRITTEN = frozenset({"squashfs", "erofs", "iso9660", "cramfs", "romfs"})


@dataclass(frozen=True)
class Gap:
    """Something whose buffered writes belong to nobody, and what to do."""

    where: str
    why: str
    remedy: str


def find_gaps(
    hierarchy: Hierarchy,
    groups: Iterable[str],
    mountinfo: Path = Path("/proc/self/mountinfo"),
) -> list[Gap]:
    """Return every group and mount where writeback is not attributed."""
    root = hierarchy.controllers()
    remedy = "boot without cgroup version 1"
    found = [
        Gap(str(hierarchy.root), f"the hierarchy has no {name} controller", remedy)
        for name in ("memory", "io")
        if name not in root
    ]
    if found:
        return found
    for group in groups:
        # Where io is enabled the kernel enables memory with it (io_cgrp_subsys.depends_on).
        if "io" not in hierarchy.controllers(group):
            remedy = "enable it above (IOAccounting=yes)"
            found.append(Gap(group, "it has no io controller", remedy))
    return [*found, *_mounts(mountinfo.read_text().splitlines())]


def _mounts(lines: Sequence[str]) -> list[Gap]:
    found: dict[str, Gap] = {}
    for line in lines:
        fields = line.split()
        if "-" not in fields:
            continue
        system, source = fields[fields.index("-") + 1 :][:2]
        options = fields[5].split(",") + fields[-1].split(",")
        if not source.startswith("/dev/") or "ro" in options or system in _NEVER_WRITTEN:
            continue
        if system not in TAKES_PART:
            found.setdefault(
                source,
                Gap(
                    fields[4],
                    f"{system} does not say whose pages it writes back",
                    f"use one of {', '.join(sorted(TAKES_PART))} for what is limited",
                ),
            )
    return list(found.values())
