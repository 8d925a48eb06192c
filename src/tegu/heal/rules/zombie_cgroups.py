"""Control groups that are removed but not gone: pages that were charged to them keep them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import Group

_MANY = 200


def check(look: Look) -> Iterator[Finding]:
    below = _children(look)
    key = "cgroup.stat/nr_dying_descendants"
    for group in look.after.groups.values():
        children = below[group.path]
        # Those right below this one: not those of living groups below.
        dying = group.get(key) - sum(c.get(key) for c in children)
        if dying < _MANY:
            continue
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


def _children(look: Look) -> dict[str, list[Group]]:
    """Return the groups right below each."""
    found: dict[str, list[Group]] = defaultdict(list)
    for path, group in look.after.groups.items():
        if path != "/":
            found[path.rpartition("/")[0] or "/"].append(group)
    return found


RULE = Rule(
    "zombie_cgroups",
    "Are there many removed control groups that something keeps alive?",
    ("cgroup.stat", "memory.stat"),
    "Documentation/admin-guide/cgroup-v2.rst, nr_dying_descendants",
    check,
)
