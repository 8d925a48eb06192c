"""A processor that did nothing else for many seconds: something in the kernel would not stop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.linux.kernel_log import Event, now

_RECENT = 300.0


def check(look: Look) -> Iterator[Finding]:
    by_task: dict[tuple[str, str], list[Event]] = defaultdict(list)
    oldest = now() - _RECENT
    for event in look.log:
        if event.kind == "soft-lockup" and event.at >= oldest:
            by_task[event.about["comm"], event.about["pid"]].append(event)
    for (comm, pid), events in by_task.items():
        longest = max(int(e.about["seconds"]) for e in events)
        there = look.after.processes.get(int(pid))
        subject = (
            look.process(int(pid))
            if there is not None and there.comm == comm
            else Subject("process", comm, int(pid))
        )
        yield Finding(
            rule="soft_lockup",
            title=f"{comm}[{pid}] held processor {events[-1].about['cpu']} for {longest} s"
            " in the kernel",
            severity="critical",
            sure=0.9,
            culprit=subject,
            victims=(Subject("machine", f"processor {events[-1].about['cpu']}"),),
            evidence=(
                Evidence("reports", len(events), f"in {_RECENT:.0f} s"),
                Evidence("the longest", longest, "s"),
                Evidence("it lives", "yes" if there is not None else "no"),
            ),
            advice="the stack is in the kernel's log (journalctl -k); a fault of the kernel or of"
            " a module: `tegu kdump` for its memory, `tegu kernel missing` for known fixes",
        )


RULE = Rule(
    "soft_lockup",
    "Did something hold a processor in the kernel?",
    ("/dev/kmsg",),
    "Documentation/admin-guide/lockup-watchdogs.rst",
    check,
)
