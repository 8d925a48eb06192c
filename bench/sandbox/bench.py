"""How long until a program runs in a container of its own, and how many a second?

Each tool starts /bin/true in a new container and is waited for; they take turns, so that whatever
else the machine does falls on all of them. `floor` starts it in none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import Bar, BenchError, BenchResult, machine
from bench.sandbox.functions import Functions

from tegu.linux import libc
from tegu.process import run as run_program
from tegu.sandbox import thin, wire
from tegu.sandbox.client import Sandbox
from tegu.sandbox.launch import connect

__all__ = ["run"]

PROGRAM = "/bin/true"
SETTLE = 0.015
"""Seconds between two starts, in which the supervisor may refill what was taken."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: starts of each tool, seconds of each throughput run."""

    starts: int
    seconds: float
    sustained: float


QUICK = Plan(starts=60, seconds=1.0, sustained=5.0)
FULL = Plan(starts=400, seconds=4.0, sustained=60.0)


def run(quick: bool) -> BenchResult:
    """Measure; the peers that are not installed are left out and named."""
    plan = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="tegu-b", dir="/tmp") as name:
        return _run(plan, Path(name))


def _run(plan: Plan, scratch: Path) -> BenchResult:
    notes: list[str] = []
    _hide_hybrid(notes)
    tools: dict[str, Callable[[], float]] = {"floor": lambda: _spawned([PROGRAM])}
    for name, make in PEERS.items():
        if _find(name) is None:
            notes.append(f"{name} is not installed and was left out.")
            continue
        tools[name] = make(scratch)
    peers = dict(tools)
    with (
        _supervisor(scratch / "w", warm=16) as warm,
        _supervisor(scratch / "c", warm=0) as cold,
        _supervisor(scratch / "p", warm=16, compiled=False) as python,
    ):
        tools["tegu cold"] = _client(cold)
        tools["tegu warm"] = _client(warm)
        tools["tegu warm --no-init"] = _client(warm, {"init": False})
        tools["tegu warm, in Python"] = _client(python)
        tools["tegu run (shell)"] = _shell(warm)
        functions = Functions(warm, scratch)
        tools["tegu function"] = functions.start()
        with Sandbox.create(path=warm) as box:
            tools["tegu, in a box that runs"] = _client(warm, name=box.name)
            times = _take_turns(tools, plan.starts)
        rates = _rates(peers, {"tegu cold": cold, "tegu warm": warm}, plan.seconds)
        rates["tegu function"] = {n: functions.flood(n, plan.seconds) for n in (1, 2, 8)}
        sustained, work = _worked(warm, plan.sustained)
        in_python, work_in_python = _worked(python, plan.seconds)
        bare, full = _idle(warm, init=False), _idle(warm, init=True)
        forked = functions.idle()
    rows = []
    for name, found in times.items():
        p50 = statistics.median(found)
        rows.append(
            {
                "start of /bin/true": name,
                "p50 ms": p50,
                "p99 ms": _p99(found),
                "of floor": p50 / statistics.median(times["floor"]),
                **{f"a second at {n}": rates.get(name, {}).get(n) for n in (1, 2, 8)},
            }
        )
    notes += [
        f"Sustained at concurrency 8 for {plan.sustained:g} s: {sustained:.0f} starts a second; a"
        f" start then takes {work:.2f} ms of processor time in all processes of the supervisor and"
        f" its boxes, {PROGRAM} included.",
        "`in Python` is the same without the compiled launcher: for"
        f" {plan.seconds:g} s {in_python:.0f} starts a second, {work_in_python:.2f} ms each.",
        f"An idle box: {bare:.2f} MiB when the program is its first process, {full:.2f} MiB with a"
        " first process above it (proportional set size of its processes).",
        "Rows of tegu: the class `container` with its own network namespace. bwrap runs with"
        " --unshare-all, crun and tegu-oci without cgroups, runc as it comes.",
        "`tegu function` is an invocation that returns its event, in a fork of its zygote with"
        " mount, pid and network namespaces of its own, from call to answer.",
    ]
    bars = _bars(times, sustained, full)
    if "bwrap" in rates:
        ratio = rates["tegu function"][8] / rates["bwrap"][8]
        bars.append(Bar.at_least("functions a second at 8 of bwrap's starts", ratio, 2.0))
    bars.append(Bar.at_most("idle forked function, MiB", forked, 1.5))
    return BenchResult("sandbox", machine(), rows, bars, notes)


def _hide_hybrid(notes: list[str]) -> None:
    """Take version 2 of a hybrid cgroup set-up out of view, with which crun refuses to start."""
    hybrid = Path("/sys/fs/cgroup/unified")
    if not hybrid.is_dir() or os.geteuid() != 0:
        return
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    libc.umount2(str(hybrid), libc.MNT_DETACH)
    notes.append(f"{hybrid} was out of view: crun does not start where both versions are mounted.")


def _bars(times: dict[str, list[float]], sustained: float, idle: float) -> list[Bar]:
    def p50(name: str) -> float:
        return statistics.median(times[name])

    bars = [Bar.at_most("warm p50 of floor's", p50("tegu warm") / p50("floor"), 2.0)]
    if "crun" in times:
        bars += [
            Bar.at_most("warm p50 of crun's", p50("tegu warm") / p50("crun"), 0.2),
            Bar.at_most("warm p99 of crun's p50", _p99(times["tegu warm"]) / p50("crun"), 1.0),
        ]
    if "bwrap" in times:
        bars.append(Bar.at_most("cold p50 of bwrap's", p50("tegu cold") / p50("bwrap"), 1.0))
    bars += [
        Bar.at_least("starts a second, sustained", sustained, 600),
        Bar.at_most("idle exec box, MiB", idle, 0.5),
        Bar.at_most("tegu run from a shell, ms", p50("tegu run (shell)"), 25),
    ]
    return bars


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def _spawned(argv: list[str], env: dict[str, str] | None = None) -> float:
    """Start a program and wait for it; returns milliseconds."""
    begun = time.perf_counter()
    pid = os.posix_spawn(
        argv[0],
        argv,
        os.environ if env is None else env,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise BenchError(f"{' '.join(argv)} ended with {code}")
    return (time.perf_counter() - begun) * 1000


def _bwrap(_: Path) -> Callable[[], float]:
    options = ["--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    argv = [shutil.which("bwrap") or "bwrap", *options, "--tmpfs", "/tmp", PROGRAM]
    return lambda: _spawned(argv)


def _find(name: str) -> str | None:
    """Return a program of the system, or of this Python's environment (tegu-oci)."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _oci(name: str, *options: str) -> Callable[[Path], Callable[[], float]]:
    """Return what prepares a bundle for an OCI runtime and returns one start of it."""

    def prepare(scratch: Path) -> Callable[[], float]:
        runtime = _find(name) or name
        bundle = scratch / f"bundle-{name}"
        root = bundle / "rootfs"
        root.mkdir(parents=True)
        said = run_program(["ldd", PROGRAM]).stdout
        for source in [PROGRAM, *re.findall(r"(/\S+) \(0x", said)]:
            target = root / source.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        run_program([runtime, "spec"], cwd=bundle)
        path = bundle / "config.json"
        config = json.loads(path.read_text())
        config["process"].update({"args": [PROGRAM], "terminal": False})
        path.write_text(json.dumps(config))
        state = scratch / f"state-{name}"
        count = iter(range(10**9))
        lock = threading.Lock()

        def start() -> float:
            with lock:
                box = f"bench-{os.getpid()}-{next(count)}"
            return _spawned(
                [runtime, "--root", str(state), *options, "run", "--bundle", str(bundle), box]
            )

        return start

    return prepare


PEERS: dict[str, Callable[[Path], Callable[[], float]]] = {
    "bwrap": _bwrap,
    "crun": _oci("crun", "--cgroup-manager=disabled"),
    "runc": _oci("runc"),
    "tegu-oci": _oci("tegu-oci", "--cgroup-manager=disabled"),
    "runsc": _oci("runsc", "--network=none", "--ignore-cgroups"),
}


@contextmanager
def _supervisor(path: Path, warm: int, *, compiled: bool = True) -> Iterator[Path]:
    source = str(Path(thin.__file__).parents[2])
    reader, writer = os.pipe()
    program = (
        f"import sys; sys.path.insert(0, {source!r}); from pathlib import Path; "
        "from tegu.sandbox.keeper import keep; "
        f"sys.exit(keep(Path(sys.argv[1]), warm={warm}, idle_exit=None, ready={writer}, "
        f"compiled={compiled}))"
    )
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, str(path)], pass_fds=[writer]
    )
    os.close(writer)
    try:
        if os.read(reader, 1) != b"1":
            raise BenchError("the supervisor did not start")
        yield path
    finally:
        os.close(reader)
        keeper.send_signal(signal.SIGTERM)
        keeper.wait(60)


def _order(box: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    if name is not None:
        return {"op": "run", "box": name, "run": {"argv": [PROGRAM]}}
    return {"op": "once", "box": box, "run": {"argv": [PROGRAM]}}


def _client(
    path: Path, box: dict[str, Any] | None = None, *, name: str | None = None
) -> Callable[[], float]:
    """Return one start through an open connection, as a program that uses the library has it."""
    link = connect(path, start=False)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    order = {"n": 1, **_order(box or {}, name)}

    def start() -> float:
        begun = time.perf_counter()
        wire.send(link, order, [null] * 3)
        answer, _ = wire.receive(link)
        took = (time.perf_counter() - begun) * 1000
        if answer is None or answer.get("ok", {}).get("code") != 0:
            raise BenchError(f"tegu: {answer}")
        return took

    return start


def _shell(path: Path) -> Callable[[], float]:
    argv = ["/usr/bin/python3", "-S", "-I", thin.__file__, PROGRAM]
    env = {**os.environ, "TEGU_SANDBOX_SOCKET": str(path)}
    return lambda: _spawned(argv, env)


def _take_turns(tools: dict[str, Callable[[], float]], starts: int) -> dict[str, list[float]]:
    for start in tools.values():
        for _ in range(3):
            start()
    times: dict[str, list[float]] = {name: [] for name in tools}
    for turn in range(starts):
        names = list(tools) if turn % 2 == 0 else list(tools)[::-1]
        for name in names:
            times[name].append(tools[name]())
            time.sleep(SETTLE)
    return times


def _rates(
    peers: dict[str, Callable[[], float]], ours: dict[str, Path], seconds: float
) -> dict[str, dict[int, float]]:
    rates: dict[str, dict[int, float]] = {}
    for concurrency in (1, 2, 8):
        for name, start in peers.items():
            rates.setdefault(name, {})[concurrency] = _crowd(start, concurrency, seconds)
        for name, path in ours.items():
            rates.setdefault(name, {})[concurrency] = _flood(path, concurrency, seconds)
    return rates


def _crowd(start: Callable[[], float], concurrency: int, seconds: float) -> float:
    """Return starts a second of a program that `concurrency` threads start again and again."""
    counts = [0] * concurrency
    end = time.monotonic() + seconds

    def work(i: int) -> None:
        while time.monotonic() < end:
            start()
            counts[i] += 1

    begun = time.monotonic()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - begun)


def _flood(path: Path, concurrency: int, seconds: float) -> float:
    """Return starts a second with `concurrency` requests under way at any time."""
    link = connect(path, start=False)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    data = json.dumps({"n": 1, **_order({})}).encode()
    begun = time.monotonic()
    end, done, waiting = begun + seconds, 0, 0
    while waiting or time.monotonic() < end:
        while waiting < concurrency and time.monotonic() < end:
            socket.send_fds(link, [data], [null] * 3)
            waiting += 1
        answer, _ = wire.receive(link)
        if answer is None or answer.get("ok", {}).get("code") != 0:
            raise BenchError(f"tegu: {answer}")
        waiting -= 1
        done += 1
    os.close(null)
    link.close()
    return done / (time.monotonic() - begun)


def _worked(path: Path, seconds: float) -> tuple[float, float]:
    """Return starts a second at concurrency 8, and the milliseconds of processor time of each."""
    supervisor = _supervisor_of(path)
    before = _ticks(supervisor)
    begun = time.monotonic()
    rate = _flood(path, 8, seconds)
    ticks = _ticks(supervisor) - before
    starts = rate * (time.monotonic() - begun)
    return rate, ticks * 1000 / os.sysconf("SC_CLK_TCK") / starts


def _supervisor_of(path: Path) -> int:
    """Return the pid of the supervisor on a socket (SO_PEERCRED names who listens, its keeper)."""
    with connect(path, start=False) as link:
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    keeper = int.from_bytes(credentials[:4], sys.byteorder)
    (entered,) = _children(keeper)
    (supervisor,) = _children(entered)
    return supervisor


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _ticks(supervisor: int) -> int:
    """Return the clock ticks that a supervisor, those it waited for and its children have used."""
    total = 0
    for pid in (supervisor, *_children(supervisor)):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15] if pid == supervisor else fields[11:13]))
    return total


def _idle(path: Path, *, init: bool) -> float:
    """Return MiB (proportional set size) of the processes of one idle box, of twenty."""
    links = []
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    mark = f"4242{int(init)}"
    order = {"op": "once", "n": 1, "box": {"init": init}, "run": {"argv": ["sleep", mark]}}
    for _ in range(20):
        link = connect(path, start=False)
        wire.send(link, order, [null] * 3)
        links.append(link)
    end = time.monotonic() + 30
    while len(found := _sleepers(mark)) < 20:
        if time.monotonic() > end:
            raise BenchError("idle boxes did not start")
        time.sleep(0.05)
    pids = list(found)
    if init:
        pids += [_parent(pid) for pid in found]
    total = sum(_pss(pid) for pid in pids)
    for link in links:
        link.close()
    os.close(null)
    return total / 20


def _sleepers(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == f"sleep\0{mark}\0".encode():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
