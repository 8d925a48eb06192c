"""Mounts that were left behind: held by a private mount namespace, or piled up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_PILED = 50
_MANY = 5000


def check(look: Look) -> Iterator[Finding]:
    if not look.namespaces:
        return
    first = look.namespaces[0]
    known = {m.device for m in first.mounts}
    for space in look.namespaces[1:]:
        # A container has a root of its own, and file systems of its own by right. A service that
        # only hides parts of the machine's tree keeps what was mounted when it started.
        if space.root != first.root:
            continue
        for mount in space.mounts:
            if mount.device in known or mount.device.startswith("0:"):
                continue
            holder = look.process(space.pid)
            yield Finding(
                rule="mount_leak",
                title=f"{mount.source} is mounted nowhere but in the namespace of {holder}",
                severity="warning",
                sure=0.85,
                culprit=holder,
                victims=(Subject("device", mount.source),),
                evidence=(
                    Evidence("held at", mount.mountpoint),
                    Evidence("mount namespace", str(space.number)),
                ),
                remedy="unmount-leaked",
                target={
                    "pid": space.pid,
                    "namespace": space.number,
                    "mountpoint": mount.mountpoint,
                    "device": mount.device,
                },
                advice=f"nsenter --mount --target {space.pid} umount {mount.mountpoint}",
            )
    yield from _piles(look)


def _piles(look: Look) -> Iterator[Finding]:
    for space in look.namespaces:
        where = Counter(m.mountpoint for m in space.mounts)
        mountpoint, count = where.most_common(1)[0] if where else ("", 0)
        if count < _PILED and len(space.mounts) < _MANY:
            continue
        if count < _PILED:
            where = Counter(m.mountpoint.rpartition("/")[0] or "/" for m in space.mounts)
            mountpoint, count = where.most_common(1)[0]
        yield Finding(
            rule="mount_leak",
            title=f"{count} mounts at {mountpoint}",
            severity="warning",
            sure=0.7,
            culprit=Subject("directory", mountpoint),
            victims=(look.process(space.pid),),
            evidence=(
                Evidence("mounts there", count, "", _PILED),
                Evidence("mounts in that namespace", len(space.mounts), "", _MANY),
            ),
            advice="whatever mounts there does not unmount; systemd reads the whole list each time",
        )


RULE = Rule(
    "mount_leak",
    "Does a mount live on where nobody sees it, or do mounts pile up?",
    ("/proc/PID/mountinfo", "/proc/PID/ns/mnt"),
    "mount_namespaces(7)",
    check,
)
