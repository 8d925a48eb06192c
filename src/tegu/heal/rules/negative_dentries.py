"""Memory full of names that do not exist: something looks up files that are not there."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_BYTES = 192  # struct dentry on 64 bits, without long names
_SHARE = 0.03
"""Of the machine's memory."""


def check(look: Look) -> Iterator[Finding]:
    if len(look.after.dentries) < 5:
        return
    negative = look.after.dentries[4]
    total = look.after.memory.get("MemTotal", 0)
    if not total or negative * _BYTES < _SHARE * total:
        return
    before = look.before.dentries[4] if len(look.before.dentries) >= 5 else negative
    holders = sorted(
        (g for g in look.leaves() if g.get("memory.current") > 1 << 20),
        key=lambda g: g.memory.get("slab_reclaimable", 0),
        reverse=True,
    )
    culprit = holders[0] if holders else None
    held = culprit.memory.get("slab_reclaimable", 0) if culprit is not None else 0
    sure = 0.5
    if culprit is not None and held > negative * _BYTES / 2:
        sure = 0.85
    yield Finding(
        rule="negative_dentries",
        title=f"{negative} names that do not exist take {negative * _BYTES >> 20} MiB",
        severity="warning",
        sure=sure,
        culprit=Subject.group(culprit.path) if culprit is not None else None,
        victims=(Subject("machine", "memory"),),
        evidence=(
            Evidence("negative dentries", negative, "", round(_SHARE * total / _BYTES)),
            Evidence("more each second", round((negative - before) / look.seconds)),
            Evidence("kernel memory of that cgroup", round(held / 2**20, 1), "MiB"),
        ),
        remedy="reclaim-dentries" if culprit is not None else "",
        target={"group": culprit.path if culprit is not None else ""},
        advice="see what it looks up: strace -e trace=%file -f -p PID; memory.reclaim frees them",
    )


RULE = Rule(
    "negative_dentries",
    "Is memory full of names that do not exist?",
    ("/proc/sys/fs/dentry-state", "memory.stat: slab_reclaimable"),
    "Documentation/admin-guide/sysctl/fs.rst, dentry-state",
    check,
)
