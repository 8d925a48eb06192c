"""What a kernel's last words say: why it crashed, in which task, where, and with what loaded.

The forms are those of the kernel's own printers: show_regs, show_stack and dump_stack
(arch/x86/kernel/dumpstack.c, arch/arm64/kernel/{process,traps}.c, lib/dump_stack.c), panic()
(kernel/panic.c), print_modules() (kernel/module/main.c); taint letters are those of
Documentation/admin-guide/tainted-kernels.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["TAINTS", "Crash", "Frame", "read_log"]

TAINTS = {
    "P": "proprietary module",
    "F": "module loaded by force",
    "S": "CPU out of specification",
    "R": "module unloaded by force",
    "M": "machine check",
    "B": "bad page",
    "U": "asked for by userspace",
    "D": "died before (oops or BUG)",
    "A": "ACPI table overridden",
    "W": "warning before",
    "C": "staging driver",
    "I": "firmware workaround",
    "O": "module from outside the kernel's tree",
    "E": "unsigned module",
    "L": "soft lockup before",
    "K": "live patched",
    "X": "set by the distribution",
    "T": "structures laid out at random",
    "N": "kernel test run",
    "J": "fwctl used",
}

# makedumpfile and kernels with CONFIG_PRINTK_CALLER name the task or CPU that printed a line.
_STAMP = re.compile(r"^(?:<\d+>)?\[ *(\d+\.\d+)\](?: ?\[ *[TC]\d+\])? ?")
# Most telling first: what the kernel noticed stands before what it did about it.
_CAUSES = (
    re.compile(r"(sysrq: Trigger a crash)"),
    re.compile(r"(BUG: .+)"),
    re.compile(r"(kernel BUG at .+)"),
    re.compile(r"(Oops: .+)"),
    re.compile(r"((?:Oops: )?general protection fault.*)"),
    re.compile(r"(Unable to handle kernel .+)"),
    re.compile(r"(Internal error: .+)"),
    re.compile(r"([a-z0-9 ]+: [0-9a-f]{4} \[#\d+\].*)"),
    re.compile(r"(INFO: task .+ blocked for more than .+)"),
    re.compile(r"(watchdog: (?:BUG|Watchdog).+)"),
)
# Seconds between the lines of one crash: a trace takes a second or two on a serial line.
_GAP = 10.0
_PANIC = re.compile(r"Kernel panic - not syncing: (.+)")
_TASK = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{1,15}?)"
    r" (?:Kdump: loaded )?(?P<taint>Not tainted|Tainted: .+?) (?P<kernel>\d+\.\d+\S*)(?: |$)"
)
# User space's own RIP, at the end of a system call's trace, is a bare number.
_RIP = re.compile(r"^(?:RIP: [0-9a-f]{4}:|pc : )([A-Za-z_][^\s/]*)")
_FRAME = re.compile(
    r"^ (?P<guess>\? )?(?:<[A-Z]+> )?(?P<function>[A-Za-z_.$][\w.$]*)"
    r"\+(?P<offset>0x[0-9a-f]+)/(?P<size>0x[0-9a-f]+)(?: \[(?P<module>[\w-]+)[^\]]*\])?"
)
_ARM_FRAME = re.compile(_FRAME.pattern.replace("^ ", "^ ?"))
_END_OF_TRACE = (
    "RIP:",
    "Code:",
    "Modules linked in",
    "---[",
    "RSP:",
    "Kernel Offset",
    "Kernel panic",
)
_HARDWARE = re.compile(r"^Hardware name: (.+)")
_MODULES = re.compile(r"^Modules linked in:(.*)")


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a call trace; `sure` is False where the kernel printed a question mark."""

    function: str
    offset: int
    module: str | None
    sure: bool

    def __str__(self) -> str:
        where = f" [{self.module}]" if self.module else ""
        return f"{'' if self.sure else '? '}{self.function}+{self.offset:#x}{where}"


@dataclass(frozen=True, slots=True)
class Crash:
    """What a log says of its end. `time` is seconds since that kernel's boot.

    `cause` is what went wrong, `panic` what panic() was called with; `where` the function that
    faulted, `trace` its callers, innermost first. What the log does not say is None or empty.
    """

    time: float | None = None
    cause: str | None = None
    panic: str | None = None
    cpu: int | None = None
    pid: int | None = None
    task: str | None = None
    kernel: str | None = None
    taint: str = ""
    where: str | None = None
    trace: tuple[Frame, ...] = ()
    modules: tuple[str, ...] = ()
    hardware: str | None = None

    @property
    def reason(self) -> str | None:
        """The cause, or what panic() said when nothing came before."""
        return self.cause or self.panic


def read_log(text: str) -> Crash:
    """Read the text of a kernel log whose end is a crash; of several faults the first counts.

    The first is what went wrong: later ones are often its consequences. A log without a crash
    gives an empty Crash.
    """
    lines = [(_time(raw), _STAMP.sub("", raw)) for raw in text.splitlines()]
    start, cause = _first_cause(lines)
    panic_at = next((i for i, (_, line) in enumerate(lines) if _PANIC.search(line)), None)
    if start is None:
        start = panic_at
    if start is None:
        return Crash()
    panic = None
    if panic_at is not None:
        found = _PANIC.search(lines[panic_at][1])
        panic = found[1] if found else None
    # The very first register dump after the cause belongs to it; sysrq has one after the panic.
    block = [line for _, line in lines[start:]]
    task = next((m for m in map(_TASK.search, block) if m), None)
    return Crash(
        time=lines[start][0],
        cause=cause,
        panic=panic,
        cpu=int(task["cpu"]) if task else None,
        pid=int(task["pid"]) if task else None,
        task=task["comm"] if task else None,
        kernel=task["kernel"] if task else None,
        taint=_letters(task["taint"]) if task else "",
        where=_where(block),
        trace=_trace(block),
        modules=_modules(block),
        hardware=next((m[1] for m in map(_HARDWARE.match, block) if m), None),
    )


def _time(line: str) -> float | None:
    match = _STAMP.match(line)
    return float(match[1]) if match else None


def _first_cause(lines: list[tuple[float | None, str]]) -> tuple[int | None, str | None]:
    """Return where the crash begins, and what was said there.

    Warnings and lockups that the kernel survived do not count. So look back from the panic, over
    what follows one another within seconds, to the first of those lines.
    """
    end = next((i for i, (_, line) in enumerate(lines) if _PANIC.search(line)), len(lines))
    when = lines[end][0] if end < len(lines) else None
    at = cause = None
    for number in range(end - 1, -1, -1):
        stamp, line = lines[number]
        if stamp is not None and when is not None and when - stamp > _GAP:
            break
        found = next((m for m in (c.search(line) for c in _CAUSES) if m), None)
        if found is not None:
            at, cause, when = number, found[1].strip(), stamp
            if found.re is _CAUSES[0]:
                break  # Asked for: what came before is not the reason.
        elif at is not None and "---[ end trace" in line:
            break
    return at, cause


def _letters(taint: str) -> str:
    """`Tainted: G        W  O` and `Tainted: [W]=WARN, [O]=OOT_MODULE` (6.12) both give `WO`."""
    if taint.startswith("Not"):
        return ""
    named = re.findall(r"\[([A-Z])\]=", taint)
    letters = named or [c for c in taint.removeprefix("Tainted:") if c.isupper()]
    # G only says that all modules are free software.
    return "".join(dict.fromkeys(c for c in letters if c != "G"))


def _where(block: list[str]) -> str | None:
    return next((m[1] for m in map(_RIP.match, block) if m), None)


def _trace(block: list[str]) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    inside = False
    for line in block:
        if line.lower().startswith("call trace:"):
            if frames:
                break
            inside = True
            continue
        if not inside:
            continue
        match = _ARM_FRAME.match(line)
        if match is not None:
            frames.append(
                Frame(
                    match["function"],
                    int(match["offset"], 16),
                    match["module"],
                    match["guess"] is None,
                )
            )
        elif line.startswith(_END_OF_TRACE) and frames:
            break
    return tuple(frames)


def _modules(block: list[str]) -> tuple[str, ...]:
    found = next((m[1] for m in map(_MODULES.match, block) if m), "")
    return tuple(found.partition("[last unloaded")[0].split())
