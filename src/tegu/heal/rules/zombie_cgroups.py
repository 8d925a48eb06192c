"""Control groups that are removed but not gone: pages that were charged to them keep them."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import Group

_MANY = 200


def check(look: Look) -> Iterator[Finding]:
    for group in look.after.groups.values():
        dying = _own(look, group)
        if dying < _MANY:
            continue
        children = _children(look, group)
        held = {
            kind: max(0, group.memory.get(kind, 0) - sum(c.memory.get(kind, 0) for c in children))
            for kind in ("file", "shmem", "slab")
        }
        cache = held["file"] - held["shmem"]
        pinned = "tmpfs" if held["shmem"] > cache else "page cache"
        yield Finding(
            rule="zombie_cgroups",
            title=f"{dying} removed cgroups below {group.path} live on, held by {pinned}",
            severity="warning",
            sure=0.85,
            culprit=Subject.group(group.path),
            victims=(Subject("machine", "kernel memory"),),
            evidence=(
                Evidence("dying cgroups", dying, "", _MANY),
                Evidence("page cache that they hold", round(cache / 2**20, 1), "MiB"),
                Evidence("tmpfs that they hold", round(held["shmem"] / 2**20, 1), "MiB"),
                Evidence("slab that they hold", round(held["slab"] / 2**20, 1), "MiB"),
                Evidence("held by", pinned),
            ),
            remedy="reclaim-zombies",
            target={"group": group.path, "pinned": pinned},
            advice="memory.reclaim of that cgroup frees page cache; files on a tmpfs must be"
            " removed, or swapped out and read again",
        )


def _own(look: Look, group: Group) -> int:
    """Return the dying groups right below this one: not those of living groups below."""
    key = "cgroup.stat/nr_dying_descendants"
    return group.get(key) - sum(c.get(key) for c in _children(look, group))


def _children(look: Look, group: Group) -> list[Group]:
    below = group.path.rstrip("/")
    return [g for p, g in look.after.groups.items() if p != "/" and p.rpartition("/")[0] == below]


RULE = Rule(
    "zombie_cgroups",
    "Are there many removed control groups that something keeps alive?",
    ("cgroup.stat", "memory.stat"),
    "Documentation/admin-guide/cgroup-v2.rst, nr_dying_descendants",
    check,
)
