"""A block device that fails requests, or a file system that found itself damaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import text
from tegu.linux.kernel_log import Event, now

_RECENT = 120.0  # seconds


def check(look: Look) -> Iterator[Finding]:
    by_device: dict[str, list[Event]] = defaultdict(list)
    oldest = now() - _RECENT
    for event in look.log:
        if event.kind in ("io-error", "fs-error") and event.at >= oldest:
            by_device[event.about["device"]].append(event)
    for device, events in by_device.items():
        if not (look.root / "sys/class/block" / device).exists():
            continue  # taken out since
        if device.startswith(("fd", "sr", "loop")) and not any(
            e.kind == "fs-error" for e in events
        ):
            continue  # a drive without a medium
        label = text(look.root / f"sys/block/{device}/dm/name").strip() or device
        yield Finding(
            rule="failing_device",
            title=f"{label} fails requests",
            severity="critical",
            sure=0.9,
            culprit=Subject("device", label),
            victims=tuple(
                Subject("filesystem", f.mountpoint)
                for f in look.filesystems
                if f.source.endswith((f"/{device}", f"/{label}"))
            ),
            evidence=(
                Evidence("errors in the kernel's log", len(events), f"in {_RECENT:.0f} s"),
                Evidence("the last", events[-1].text),
            ),
            advice="copy what is on it while it can be read; a new device, then fsck",
        )


RULE = Rule(
    "failing_device",
    "Does a block device fail requests?",
    ("/dev/kmsg",),
    "blk_print_req_error() in block/blk-mq.c; buffer_io_error() in fs/buffer.c",
    check,
)
