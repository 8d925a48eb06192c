"""What does it cost to watch the run queues of a machine that switches tasks all the time?

Two processes hand a byte to and fro on one processor (`perf bench sched pipe`), so that nearly all
they do is switch; a program on the switch shows in their CPU time. Nobody, Tegu and the peers watch
in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.common import Bar, BenchError, BenchResult, Usage, machine, measure

__all__ = ["run"]

NOBODY = "nobody"
EMPTY = "an empty program"
TEGU = "tegu probe runq"
AGENT = "tegu agent, a look every 15 s"
_AGENT = """
import sys
from pathlib import Path
from tegu.heal.agent import run_agent
run_agent(15.0, Path(sys.argv[1], "history"), Path(sys.argv[1], "state"), closer=False)
"""
"""The always-on set, as its service runs it, without the front door; no probe under pressure."""
READY_SECONDS = 60
_BPFTRACE = """
BEGIN { printf("Tracing\\n"); }
tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @queued[args->pid] = nsecs; }
tracepoint:sched:sched_switch {
    if (args->prev_state == 0) { @queued[args->prev_pid] = nsecs; }
    $since = @queued[args->next_pid];
    if ($since) { @usecs = hist((nsecs - $since) / 1000); }
    delete(@queued[args->next_pid]);
}"""
"""What runqlat.bt does; that one needs the headers of the running kernel for one constant."""
_TRACING = "/sys/kernel/tracing"


@dataclass(frozen=True)
class Watcher:
    """A program that watches; it is ready when its output has `ready`."""

    name: str
    argv: tuple[str, ...]
    ready: bytes


@dataclass
class Seen:
    """What was measured of one watcher."""

    load: list[Usage]
    attach: list[float]
    resident: list[float]
    own_cpu: list[float]
    lost: float = 0


def run(quick: bool) -> BenchResult:
    """Measure; peers that are not installed or do not work here are left out and named."""
    perf = shutil.which("perf")
    if perf is None:
        raise BenchError("perf is not installed (package linux-perf)")
    cpu = max(os.sched_getaffinity(0))
    loops, turns = (150_000, 3) if quick else (600_000, 9)
    load = ["taskset", "-c", str(cpu), perf, "bench", "sched", "pipe", "-l", str(loops)]
    notes: list[str] = []
    watchers = [w for w in _watchers(notes) if _works(w, notes)]
    seen = {name: Seen([], [], [], []) for name in (EMPTY, *(w.name for w in watchers))}
    nobody: list[Usage] = []
    for turn in range(turns):
        with _empty(seen[EMPTY]):
            seen[EMPTY].load.append(measure(load))
        order: list[Watcher | None] = [None, *watchers]
        for watcher in order if turn % 2 == 0 else reversed(order):
            if watcher is None:
                nobody.append(measure(load))
                continue
            with _watching(watcher, seen[watcher.name]):
                seen[watcher.name].load.append(measure(load))
    result = _result(nobody, seen, loops, notes)
    return _resident(result, loops * 10, 2 if quick else 5, [*load[:-1], str(loops * 10)])


def _resident(result: BenchResult, loops: int, turns: int, load: Sequence[str]) -> BenchResult:
    """Measure the agent: ten times the load, so that it looks more than once; adds row and bars."""
    nobody: list[Usage] = []
    seen = Seen([], [], [], [])
    with tempfile.TemporaryDirectory(prefix="tegu-bench-") as scratch:
        agent = Watcher(AGENT, (sys.executable, "-I", "-c", _AGENT, scratch), b"looking every")
        for turn in range(turns):
            if turn % 2:
                nobody.append(measure(load))
            with _watching(agent, seen):
                seen.load.append(measure(load))
            if not turn % 2:
                nobody.append(measure(load))
    both = [u.cpu + own for u, own in zip(seen.load, seen.own_cpu, strict=True)]
    ratio = statistics.median(b / n.cpu for b, n in zip(both, nobody, strict=True))
    own = statistics.median(o / u.wall for o, u in zip(seen.own_cpu, seen.load, strict=True))
    row = {
        "watcher": AGENT,
        "load_cpu_s": round(statistics.median(u.cpu for u in seen.load), 3),
        "load_ratio": round(ratio, 3),
        "ns_a_switch": round(
            statistics.median(u.cpu - n.cpu for u, n in zip(seen.load, nobody, strict=True))
            / (2 * loops)
            * 1e9
        ),
        "ready_s": round(statistics.median(seen.attach), 2),
        "resident_mib": round(statistics.median(seen.resident), 1),
        "own_cpu_s": round(statistics.median(seen.own_cpu), 2),
    }
    bars = [
        Bar.at_most("CPU time of the load and of the agent, beside nobody", round(ratio, 3), 1.02),
        Bar.at_most("the agent's own CPU time, of one processor", round(own, 4), 0.02),
        Bar.at_most("the agent, resident MiB", statistics.median(seen.resident), 40),
    ]
    note = (
        f"the agent's load is {loops} round trips, beside as many with nobody; its ratio counts"
        " its own CPU time as well"
    )
    return replace(
        result,
        rows=[*result.rows, row],
        bars=[*result.bars, *bars],
        notes=[*result.notes, note],
    )


def _watchers(notes: list[str]) -> Iterator[Watcher]:
    ours = (sys.executable, "-m", "tegu", "probe", "runq", "--seconds", "0", "--json")
    yield Watcher(TEGU, ours, b'"header"')
    found = shutil.which("runqlat", path="/usr/sbin:/usr/bin")
    if found:
        yield Watcher("libbpf-tools runqlat", ("stdbuf", "-oL", found, "3600", "1"), b"Tracing")
    else:
        notes.append("runqlat of libbpf-tools is not installed")
    bpftrace = shutil.which("bpftrace")
    if bpftrace:
        yield Watcher("bpftrace", (bpftrace, "-e", _BPFTRACE), b"Tracing")
    else:
        notes.append("bpftrace is not installed")
    bcc = shutil.which("runqlat-bpfcc", path="/usr/sbin:/usr/bin")
    if bcc:
        yield Watcher("bcc runqlat", ("/usr/bin/python3", "-u", bcc, "3600", "1"), b"Tracing")
    else:
        notes.append("runqlat-bpfcc is not installed")


def _works(watcher: Watcher, notes: list[str]) -> bool:
    try:
        with _watching(watcher, Seen([], [], [], [])):
            return True
    except BenchError as e:
        if watcher.name == TEGU:
            raise
        notes.append(e.message)
        return False


@contextmanager
def _empty(seen: Seen) -> Iterator[None]:
    """Attach a program that does nothing."""
    from tegu.linux.libbpf import BpfObject
    from tegu.packages.probes import OBJECTS, compile_one

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "empty.bpf.o"
        compile_one(Path(__file__).with_name("empty.bpf.c"), target, OBJECTS)
        data = target.read_bytes()
    began = time.monotonic()
    with BpfObject(data) as program:
        program.load()
        program.attach("empty_switch")
        seen.attach.append(time.monotonic() - began)
        yield


@contextmanager
def _watching(watcher: Watcher, seen: Seen) -> Iterator[None]:
    """Run a watcher, with tracefs mounted where it sees it and we do not."""
    mount = f'mount -t tracefs tracefs {_TRACING}; ulimit -l unlimited; exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", mount, "sh", *watcher.argv]
    began = time.monotonic()
    # Into a file: a pipe that nobody reads would hold the watcher up.
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
        try:
            while watcher.ready not in (said := os.pread(output.fileno(), 1 << 16, 0)):
                if child.poll() is not None or time.monotonic() - began > READY_SECONDS:
                    last = said.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
                    raise BenchError(f"{watcher.name} does not work here: {last[0]}")
                time.sleep(0.005)
            seen.attach.append(time.monotonic() - began)
            before = _cpu_seconds(child.pid)
            yield
            seen.own_cpu.append(_cpu_seconds(child.pid) - before)
            seen.resident.append(_resident_mib(child.pid))
        finally:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            output.seek(0)
            seen.lost += _lost(output.read()) if watcher.name == TEGU and seen.load else 0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    # Its own, and that of the programs that it ran.
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _result(
    nobody: Sequence[Usage], seen: dict[str, Seen], loops: int, notes: list[str]
) -> BenchResult:
    rows: list[dict[str, Any]] = [
        {
            "watcher": NOBODY,
            "load_cpu_s": round(statistics.median(u.cpu for u in nobody), 3),
            "load_ratio": 1.0,
            "ns_a_switch": 0,
            "ready_s": None,
            "resident_mib": None,
            "own_cpu_s": None,
        }
    ]
    ratios: dict[str, float] = {}
    for name, found in seen.items():
        pairs = list(zip(found.load, nobody, strict=True))
        ratios[name] = statistics.median(u.cpu / n.cpu for u, n in pairs)
        extra = statistics.median(u.cpu - n.cpu for u, n in pairs)
        rows.append(
            {
                "watcher": name,
                "load_cpu_s": round(statistics.median(u.cpu for u in found.load), 3),
                "load_ratio": round(ratios[name], 3),
                "ns_a_switch": round(extra / (2 * loops) * 1e9),
                "ready_s": round(statistics.median(found.attach), 2),
                "resident_mib": round(statistics.median(found.resident), 1)
                if found.resident
                else None,
                "own_cpu_s": round(statistics.median(found.own_cpu), 2) if found.own_cpu else None,
            }
        )
    bars = [
        Bar.at_most("CPU time of the load, watched by Tegu", round(ratios[TEGU], 3), 1.02),
        Bar.at_most("Tegu, resident MiB", statistics.median(seen[TEGU].resident), 40),
        Bar.at_most("events lost", seen[TEGU].lost, 0),
    ]
    bars += [
        Bar.at_least(f"added by {name} beside Tegu, times", round(_times(r, ratios[TEGU]), 1), 1)
        for name, r in ratios.items()
        if name not in (EMPTY, TEGU)
    ]
    return BenchResult("probe", machine(), rows, bars, notes)


def _times(theirs: float, ours: float) -> float:
    return (theirs - 1) / max(ours - 1, 1e-4)


def _lost(output: bytes) -> float:
    """Return what the last record, the end, says; a missing one is a failure."""
    for line in reversed(output.splitlines()):
        if line.startswith(b'{"type":"end"'):
            return float(json.loads(line)["lost"])
    raise BenchError("tegu probe did not end its stream")
