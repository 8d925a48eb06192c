"""What every bench is made of: bars, results, the machine, and the cost of a whole process tree.

A bench is a module `bench/<name>/bench.py` with `run(quick: bool) -> BenchResult`. On a shared
machine single figures drift; so competitors run in turn (`alternate`) and are compared by the
median of their paired ratios (`ratio`).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tegu.errors import TeguError

__all__ = [
    "Bar",
    "BenchError",
    "BenchResult",
    "Usage",
    "alternate",
    "disk_used",
    "machine",
    "measure",
    "median",
    "ratio",
]

PR_SET_CHILD_SUBREAPER = 36
"""include/uapi/linux/prctl.h: orphans of the tree become our children, so that we can wait."""

SAMPLE_SECONDS = 0.25


class BenchError(TeguError):
    """A measured program failed; its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise about one figure: `value` must be at least or at most `limit`."""

    name: str
    value: float
    limit: float
    holds: bool
    sense: Literal["at least", "at most"] = "at least"

    @classmethod
    def at_least(cls, name: str, value: float, limit: float) -> Bar:
        """Return a bar that holds when `value >= limit`."""
        return cls(name, value, limit, value >= limit, "at least")

    @classmethod
    def at_most(cls, name: str, value: float, limit: float) -> Bar:
        """Return a bar that holds when `value <= limit`."""
        return cls(name, value, limit, value <= limit, "at most")


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One run of a bench: rows of the table (same keys in each row) and the bars."""

    bench: str
    machine: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    bars: Sequence[Bar]
    notes: Sequence[str] = ()
    """Sentences for the reader of the table: what was compared, and what was left out."""

    @property
    def holds(self) -> bool:
        """Whether every bar holds."""
        return all(bar.holds for bar in self.bars)

    def to_json(self) -> dict[str, Any]:
        """Return `{"bench", "machine", "rows", "bars": [{"name", "value", "limit", "holds"}]}`."""
        bars = []
        for bar in self.bars:
            item = asdict(bar)
            del item["sense"]
            bars.append(item)
        return {
            "bench": self.bench,
            "machine": dict(self.machine),
            "rows": [dict(row) for row in self.rows],
            "bars": bars,
        }

    def to_text(self) -> str:
        """Return the machine, the table and the bars as plain text (also valid Markdown)."""
        about = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        parts = [f"bench {self.bench}: {about}", ""]
        if self.rows:
            columns = list(self.rows[0])
            parts += [*_table(columns, [[row.get(c) for c in columns] for row in self.rows]), ""]
        if self.bars:
            lines = [
                [b.name, b.value, f"{b.sense} {_show(b.limit)}", "holds" if b.holds else "MISSED"]
                for b in self.bars
            ]
            parts += [*_table(["bar", "value", "limit", "result"], lines), ""]
        parts += list(self.notes)
        return "\n".join(parts).rstrip() + "\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree cost: seconds of wall and CPU time, and memory in MiB.

    `cpu` is user and system time of every process of the tree. `peak_mib` is the resident set of
    the largest single process; `sum_mib` the largest sum of the anonymous memory of all processes
    seen at one moment (sampled four times a second, so short peaks may be missed).
    """

    wall: float
    cpu: float
    peak_mib: float
    sum_mib: float


def measure(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 3600,
    log: Path | None = None,
) -> Usage:
    """Run `argv` to its end, with all that it starts, and return what the whole tree cost.

    Output goes to `log` (or nowhere). CPU time and the largest resident set come from
    getrusage(2) RUSAGE_CHILDREN in a process of its own that is also the subreaper of the tree
    (prctl(2)), so that daemons which double-fork are counted too. Raises BenchError, with the last
    lines of the output, when the program cannot start, fails or outlives `timeout` seconds.
    """
    job = _Job([str(a) for a in argv], env, cwd, timeout, log)
    reader, writer = os.pipe()
    # A fork of our own: RUSAGE_CHILDREN only ever grows, so each measurement needs a fresh parent.
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _measure_in_child(writer, job)
    os.close(writer)
    try:
        with os.fdopen(reader) as answer:
            text = answer.read()
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.waitpid(pid, 0)
    if not text.startswith("ok "):
        raise BenchError(text or f"{job.args[0]}: the measurement was interrupted")
    return Usage(*(float(figure) for figure in text.split()[1:]))


@dataclass(frozen=True, slots=True)
class _Job:
    """What to run, and how: the arguments of `measure`."""

    args: list[str]
    env: Mapping[str, str] | None
    cwd: Path | None
    timeout: float
    log: Path | None


def _measure_in_child(writer: int, job: _Job) -> None:
    """Run and measure in a forked child; writes one line to `writer` and never returns."""
    answer = ""
    try:
        # Ctrl-C reaches our parent as well, which then sends SIGTERM: one way to stop, not two.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _stop)
        answer = _measured(job)
    except OSError as e:
        answer = f"cannot run {job.args[0]}: {e.strerror}"
    finally:
        _kill_descendants()
        os.write(writer, answer.encode())
        os._exit(0)


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit


def _measured(job: _Job) -> str:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    name = job.args[0]
    stop = threading.Event()
    sums = [0.0]
    with (job.log or Path(os.devnull)).open("ab") as sink:
        started = time.monotonic()
        child = subprocess.Popen(
            job.args,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=dict(job.env) if job.env is not None else None,
            cwd=job.cwd,
            start_new_session=True,
        )
    sampler = threading.Thread(target=_sample, args=(os.getpid(), stop, sums), daemon=True)
    sampler.start()
    try:
        code = child.wait(job.timeout)
    except subprocess.TimeoutExpired:
        return f"{name} did not end within {job.timeout:g} s"
    wall = time.monotonic() - started
    stop.set()
    sampler.join()
    _reap_orphans(deadline=time.monotonic() + 10)
    if code != 0:
        tail = job.log.read_text(errors="replace").strip().splitlines()[-3:] if job.log else []
        return f"{name} exited with {code}: {'; '.join(tail) or 'no output kept'}"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    return f"ok {wall} {cpu} {used.ru_maxrss / 1024} {sums[0]}"  # ru_maxrss is in KiB


def _kill_descendants() -> None:
    """End whatever the measured program left; as its subreaper we see all of it."""
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap_orphans(deadline: float) -> None:
    """Wait for what the tree left running (gpg-agent and the like), so that it is counted."""
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.05)


def _sample(root: int, stop: threading.Event, sums: list[float]) -> None:
    while not stop.wait(SAMPLE_SECONDS):
        sums[0] = max(sums[0], sum(_anonymous_mib(pid) for pid in _descendants(root)))


def _descendants(root: int) -> list[int]:
    """Return the pids below `root`, from the parent field of /proc/PID/stat (proc_pid_stat(5))."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _anonymous_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def alternate(cases: Mapping[str, Callable[[], Usage]], repetitions: int) -> dict[str, list[Usage]]:
    """Run all cases in turn, `repetitions` times, in reversed order every other time."""
    results: dict[str, list[Usage]] = {name: [] for name in cases}
    for turn in range(repetitions):
        names = list(cases) if turn % 2 == 0 else list(cases)[::-1]
        for name in names:
            results[name].append(cases[name]())
    return results


def median(usages: Sequence[Usage]) -> Usage:
    """Return the median of each figure on its own."""
    return Usage(*(statistics.median(getattr(u, f.name) for u in usages) for f in fields(Usage)))


def ratio(ours: Sequence[Usage], theirs: Sequence[Usage], figure: Literal["cpu", "wall"]) -> float:
    """Return how many times more `theirs` cost: the median of the ratios of paired runs."""
    pairs = zip(ours, theirs, strict=True)
    ratios = [getattr(t, figure) / max(getattr(o, figure), 1e-6) for o, t in pairs]
    return float(statistics.median(ratios))


def disk_used(path: Path) -> float:
    """Return the MiB that `path` and all below it occupy; hard links count once."""
    seen: set[tuple[int, int]] = set()
    blocks = 0
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names, "."):
            try:
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - hot loop
            except FileNotFoundError:
                continue
            if (key := (status.st_dev, status.st_ino)) not in seen:
                seen.add(key)
                blocks += status.st_blocks
    return blocks * 512 / 2**20


def machine() -> dict[str, Any]:
    """Describe this machine: processor, cores, memory, kernel, distribution, load (1 min)."""
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = "unknown"
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "system": system,
        "load": round(os.getloadavg()[0], 2),
    }


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return "" if value is None else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [list(columns), *([_show(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(columns))
    ]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if n else v.ljust(w) for v, w, n in zip(values, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if n else "-" * w for w, n in zip(widths, numeric, strict=True)]
    return [line(cells[0]), line(rule), *(line(row) for row in cells[1:])]
