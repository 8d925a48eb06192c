"""A control group whose processes are killed for lack of memory again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.linux.kernel_log import Event, now

_RECENT = 300.0
_OFTEN = 3
_SOON = 5.0


def check(look: Look) -> Iterator[Finding]:
    kills: dict[str, list[Event]] = defaultdict(list)
    oldest = now() - _RECENT
    for event in look.log:
        if event.kind == "oom" and event.at >= oldest:
            # Whose limit it was; when the machine itself was short, whose process was killed.
            whose = event.about.get("limit") or event.about.get("cgroup") or "/"
            kills[whose].append(event)
    for path, events in kills.items():
        if len(events) < _OFTEN:
            continue
        group = look.after.groups.get(path)
        limit = group.limit("memory.max") if group is not None else None
        last = events[-1]
        age = now() - last.at
        interval = (last.at - events[0].at) / (len(events) - 1)
        if age > max(_SOON, 2 * interval):
            continue  # it has stopped
        whole = last.about.get("constraint") == "CONSTRAINT_NONE"
        yield Finding(
            rule="oom_loop",
            title=f"{len(events)} processes of {path} were killed for lack of memory",
            severity="critical",
            sure=0.6 if whole else 0.95,
            culprit=Subject.group(path),
            victims=(Subject("process", last.about["comm"], int(last.about["pid"])),),
            evidence=(
                Evidence("kills", len(events), f"in {_RECENT:.0f} s", _OFTEN),
                Evidence("one every", round(interval, 1), "s"),
                Evidence("since the last", round(age, 1), "s"),
                *((Evidence("limit", round(limit / 2**20, 1), "MiB"),) if limit else ()),
            ),
            remedy="" if whole else "raise-memory",
            target={"group": path, "interval": round(interval, 1)},
            advice="give it more memory, or stop it: each restart pays for the same end",
        )


RULE = Rule(
    "oom_loop",
    "Is something killed for lack of memory again and again?",
    ("/dev/kmsg", "memory.max"),
    "dump_oom_summary() in mm/oom_kill.c",
    check,
)
