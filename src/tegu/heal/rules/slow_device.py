"""A block device that takes long for each request, while the devices below it do not."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import text

_SLOW_MS = 100.0
_ALONE_MS = 30.0
"""Of the device's busy time, for each request: many at once share it."""
_FEWEST = 2  # requests: fewer say nothing


def check(look: Look) -> Iterator[Finding]:
    slow = {}
    for name in look.after.disks:
        mean = _mean_ms(look, name)
        if mean is not None and mean >= _SLOW_MS:
            slow[name] = mean
    for name, mean in slow.items():
        below = _slaves(look, name)
        if any(s in slow and slow[s] > mean / 2 for s in below):
            continue  # the one below is the slow one
        disk, old = look.after.disks[name], look.before.disks[name]
        count = disk.reads + disk.writes - old.reads - old.writes
        alone = (disk.busy_ms - old.busy_ms) / count
        if alone < _ALONE_MS:
            continue  # a device that works hard: its requests wait for one another
        label = text(look.root / f"sys/block/{name}/dm/name").strip() or name
        lower = [m for m in (_mean_ms(look, s) for s in below) if m is not None]
        yield Finding(
            rule="slow_device",
            title=f"{label} takes {mean:.0f} ms for a request",
            severity="warning",
            sure=0.9 if below else 0.7,
            culprit=Subject("device", label),
            victims=tuple(look.process(p.pid) for p in look.stuck() if not p.kernel),
            evidence=(
                Evidence("time of a request", round(mean, 1), "ms", _SLOW_MS),
                Evidence("busy for each", round(alone, 1), "ms", _ALONE_MS),
                Evidence("requests", count),
                *((Evidence("of the device below", round(max(lower), 1), "ms"),) if lower else ()),
            ),
            advice="move its data, or ask who runs the device; "
            + (f"dmsetup table {label} shows what it does" if below else "`tegu probe blkio`"),
        )


def _mean_ms(look: Look, name: str) -> float | None:
    """Return what a request took from start to end; None where too few have ended."""
    new, old = look.after.disks.get(name), look.before.disks.get(name)
    if new is None or old is None or name.startswith(("loop", "zram", "ram", "sr", "fd")):
        return None
    count = new.reads + new.writes - old.reads - old.writes
    if count < _FEWEST:
        return None
    return (new.read_ms + new.write_ms - old.read_ms - old.write_ms) / count


def _slaves(look: Look, name: str) -> list[str]:
    try:
        return os.listdir(look.root / f"sys/block/{name}/slaves")  # noqa: PTH208
    except OSError:
        return []


RULE = Rule(
    "slow_device",
    "Does a block device take long for each request?",
    ("/proc/diskstats", "/sys/block/*/slaves"),
    "Documentation/admin-guide/iostats.rst",
    check,
)
