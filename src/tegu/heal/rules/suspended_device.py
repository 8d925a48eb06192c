"""A device-mapper device that is suspended: all I/O to it waits until someone resumes it."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import text


def check(look: Look) -> Iterator[Finding]:
    stuck = look.stuck()
    for name, disk in look.after.disks.items():
        if not name.startswith("dm-") or look.number(f"sys/block/{name}/dm/suspended") != 1:
            continue
        old = look.before.disks.get(name)
        if old is None or (old.reads, old.writes) != (disk.reads, disk.writes):
            continue  # it was not suspended all the time: a snapshot that is being made
        label = text(look.root / f"sys/block/{name}/dm/name").strip() or name
        yield Finding(
            rule="suspended_device",
            title=f"{label} ({name}) is suspended: all I/O to it waits",
            severity="critical",
            sure=0.95,
            culprit=Subject("device", label),
            victims=tuple(look.process(p.pid) for p in stuck if not p.kernel),
            evidence=(
                Evidence("suspended for at least", round(look.seconds, 1), "s"),
                Evidence("processes in state D", len(stuck)),
            ),
            stacks=tuple(s for s in (look.stack(p.pid) for p in stuck[:3]) if s),
            remedy="resume-device",
            target={"device": label},
            advice=f"dmsetup resume {label}, unless something is replacing its table right now",
        )


RULE = Rule(
    "suspended_device",
    "Is a device-mapper device suspended?",
    ("/sys/block/dm-*/dm/suspended", "/proc/diskstats", "/proc/PID/stat"),
    "dmsetup(8), suspend and resume",
    check,
)
