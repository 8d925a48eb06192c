"""A process that is about to have no descriptor left, or has none."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import text

_FULL = 0.9


def check(look: Look) -> Iterator[Finding]:
    for pid, process in look.after.processes.items():
        if process.kernel or process.state == "Z":
            continue
        try:
            # Since 6.2 the directory's size is the number of open descriptors (fs/proc/fd.c);
            # before it is 0.
            count = os.stat(f"{look.proc}/{pid}/fd").st_size or len(  # noqa: PTH116
                os.listdir(f"{look.proc}/{pid}/fd")  # noqa: PTH208
            )
        except OSError:
            continue
        if count < 50:
            continue
        soft, hard = _limits(text(f"{look.proc}/{pid}/limits"))
        if soft is None or count < _FULL * soft:
            continue
        subject = look.process(pid)
        yield Finding(
            rule="fd_limit",
            title=f"{subject} has {count} of {soft} descriptors open",
            severity="critical" if count >= soft else "warning",
            sure=0.95,
            culprit=subject,
            victims=(subject,),
            evidence=(
                Evidence("descriptors", count, f"of {soft}", _FULL * soft),
                Evidence("hard limit", hard if hard is not None else "none"),
                Evidence("most are", _kinds(look, pid)),
            ),
            remedy="raise-fd-limit" if hard is None or hard > soft else "",
            target={"pid": pid, "started": process.started, "soft": soft},
            advice=f"LimitNOFILE= of {subject.unit or 'its unit'}; if the number only grows, "
            "it forgets to close them",
        )


def _limits(content: str) -> tuple[int | None, int | None]:
    for line in content.splitlines():
        if line.startswith("Max open files"):
            words = line.split()
            found = [int(w) if w.isdigit() else None for w in words[3:5]]
            if len(found) == 2:
                return found[0], found[1]
    return None, None


def _kinds(look: Look, pid: int) -> str:
    counts: dict[str, int] = {}
    try:
        for fd in os.listdir(f"{look.proc}/{pid}/fd")[:500]:  # noqa: PTH208
            link = os.readlink(f"{look.proc}/{pid}/fd/{fd}")  # noqa: PTH115
            kind = link.partition(":")[0] if not link.startswith("/") else link
            counts[kind] = counts.get(kind, 0) + 1
    except OSError:
        return "unknown"
    return max(counts, key=lambda k: counts[k], default="unknown")


RULE = Rule(
    "fd_limit",
    "Has a process nearly no descriptor left?",
    ("/proc/PID/fd", "/proc/PID/limits"),
    "getrlimit(2), RLIMIT_NOFILE",
    check,
)
