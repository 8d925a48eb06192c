"""`profile`: who has the processors, and what it does there."""

from __future__ import annotations

import os
import struct
from collections import Counter
from typing import TYPE_CHECKING

from tegu.linux.perf import online_cpus, sample_clock
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import WHO, Settings, Tool, slots_of, text, top_rows

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Profile"]

_KEY = struct.Struct(f"<{WHO}qq")
_TOO_MANY = -17  # -EEXIST: another stack has the place in the table


class Profile(Tool):
    """Who has the processors, and what does it do there?

    Samples each busy processor 99 times a second (--hertz) with the stacks of kernel and process,
    and counts them in the kernel. Shows shares by control group, process and function; --flame
    draws all stacks as a flame graph. Stacks of processes need frame pointers to be deep.
    """

    name = "profile"
    group = "cpu"
    question = "Who has the processors, and what does it do there?"
    facility = "perf events of the processors' clock (PERF_COUNT_SW_CPU_CLOCK)"
    overhead = "one stack walk for each sample: 99 a second on each busy processor"
    object_name = "profile"
    sampled = True
    stacks = True
    example = "Example: tegu probe profile --seconds 10 --flame cpu.svg"

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def attach(self, session: Session) -> None:
        for cpu in online_cpus():
            fd = sample_clock(cpu, session.settings.hertz)
            try:
                session.object.attach("profile_sample", perf_event=fd)
            except BaseException:
                os.close(fd)  # else it belongs to the link
                raise

    def extra(self, settings: Settings) -> int:
        return settings.hertz

    def tick(self, session: Session) -> None:
        """Note what short-lived processes have mapped, while they are there."""
        for key in session.map("counts"):
            pid = _KEY.unpack(key)[2]
            if pid not in self._seen:
                self._seen.add(pid)
                session.names.symbols.remember(pid)

    def summarize(self, session: Session) -> Record:
        idle, busy = slots_of(session.map("samples"))
        stacks: dict[int, tuple[int, ...]] = {}
        source = session.map("stacks")
        unkept = 0

        def addresses(number: int) -> tuple[int, ...]:
            if number not in stacks:
                found = source.get(struct.pack("<I", number))
                whole = struct.unpack("<127Q", found[0]) if found else ()
                stacks[number] = tuple(a for a in whole if a)
            return stacks[number]

        samples = []
        for key, values in session.map("counts").items():
            cgroup, _, tgid, comm, in_kernel, in_user = _KEY.unpack(key)
            count = struct.unpack("<Q", values[0])[0]
            unkept += count * (_TOO_MANY in (in_kernel, in_user))
            symbols = session.names.symbols
            samples.append(
                {
                    "comm": text(comm),
                    "pid": tgid,
                    "cgroup": session.names.groups.name(cgroup),
                    "count": count,
                    "kernel": symbols.kernel(addresses(in_kernel)) if in_kernel >= 0 else [],
                    "user": symbols.user(tgid, addresses(in_user)) if in_user >= 0 else [],
                }
            )
        return {
            "hertz": session.settings.hertz,
            "idle": idle,
            "busy": busy,
            "stacks_not_kept": unkept,
            "samples": samples,
        }

    def lines(self, event: Record) -> list[str]:
        return []  # there are none

    def tables(self, recording: Recording, top: int) -> list[Table]:
        summary = recording.summary
        samples = summary["samples"]
        taken = sum(int(s["count"]) for s in samples)
        idle, busy = int(summary["idle"]), int(summary["busy"])
        groups: Counter[str] = Counter()
        processes: Counter[tuple[str, str, str]] = Counter()
        functions: Counter[str] = Counter()
        for s in samples:
            groups[str(s["cgroup"])] += int(s["count"])
            processes[(str(s["comm"]), str(s["pid"]), str(s["cgroup"]))] += int(s["count"])
            leaf = [f"{f} (kernel)" for f in s["kernel"][:1]] or s["user"][:1] or ["[unknown]"]
            functions[str(leaf[0])] += int(s["count"])

        def share(count: int) -> str:
            return f"{100 * count / taken:.1f} %" if taken else "0 %"

        used = 100 * busy / (idle + busy) if idle + busy else 0
        found = [
            Table(
                f"{taken} samples in {recording.seconds:.1f} s;"
                f" processors busy {used:.0f} % of the time",
                ("cgroup", "share"),
                [(name, share(n)) for name, n in groups.most_common(top)],
            ),
            Table(
                "processes",
                ("process", "pid", "cgroup", "share"),
                [(*key, share(n)) for key, n in processes.most_common(top)],
            ),
            Table(
                "functions on top",
                ("function", "share"),
                [(name, share(n)) for name, n in functions.most_common(top)],
            ),
        ]
        if summary["stacks_not_kept"]:
            found.append(
                Table(
                    f"{summary['stacks_not_kept']} samples lack a stack: too many different ones",
                    (),
                )
            )
        return found

    def stacks_of(self, recording: Recording) -> list[tuple[list[str], float]]:
        return [
            (
                [
                    str(s["comm"]),
                    *reversed(s["user"]),
                    *(f"{frame}_[k]" for frame in reversed(s["kernel"])),
                ],
                float(s["count"]),
            )
            for s in top_rows(recording.summary["samples"], "count", 1 << 20)
        ]
