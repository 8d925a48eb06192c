"""Which groups of this machine a policy means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from tegu.errors import QosError
from tegu.linux.cgroup2 import Hierarchy
from tegu.qos.policy import CLASSES, ClassName, Match, Policy

__all__ = ["matches", "members"]


def members(policy: Policy, hierarchy: Hierarchy) -> dict[ClassName, list[str]]:
    """Return the groups of each class, outermost only, sorted.

    A group below a member belongs to it and gets nothing of its own. Raises QosError when two
    classes claim one group.
    """
    groups = hierarchy.groups()
    found: dict[ClassName, list[str]] = {}
    claimed: dict[str, ClassName] = {}
    for name in CLASSES:
        chosen = [g for g in groups if any(matches(m, g) for m in policy.classes[name].match)]
        found[name] = _outermost(chosen)
        for group in found[name]:
            if group in claimed:
                raise QosError(
                    f"{policy.source}: {group} is matched by {claimed[group]} and by {name}",
                    hint="a group belongs to one class",
                )
            claimed[group] = name
    return found


def matches(match: Match, group: str) -> bool:
    """Whether `match` means `group`.

    Names as systemd and the container engines make them: a unit is a directory of its name, a
    container's is its 64 digits (with or without `docker-` or `cri-containerd-` and `.scope`), a
    pod's has its UID with dashes or, under systemd, underscores.
    """
    last = group.rpartition("/")[2]
    if match.kind == "cgroup":
        return _glob(match.pattern, group)
    if match.kind in ("unit", "slice"):
        wanted = match.pattern
        if match.kind == "slice" and not wanted.endswith(".slice"):
            wanted += ".slice"
        if match.kind == "unit" and "." not in wanted:
            wanted += ".service"
        return fnmatchcase(last, wanted)
    if match.kind == "container":
        identity = re.search(r"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$", last)
        return identity is not None and identity[1].startswith(match.pattern)
    uid = match.pattern.replace("_", "-")
    pod = re.search(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?:\.slice)?$", last)
    return pod is not None and pod[1].replace("_", "-") == uid


def _glob(pattern: str, group: str) -> bool:
    """Match segment by segment; `*` stays within one, as in a shell."""
    wanted, parts = pattern.strip("/").split("/"), group.strip("/").split("/")
    return len(wanted) == len(parts) and all(
        fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True)
    )


def _outermost(groups: Iterable[str]) -> list[str]:
    found: list[str] = []
    for group in sorted(groups):
        if not any(group.startswith(f"{above}/") for above in found):
            found.append(group)
    return found
