"""What does each way to start a Java program as a function save?

The same small service is deployed in three ways and called by turns; each call starts it in a box
of its own. `java` is the program without any box.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.common import Bar, BenchError, BenchResult, machine
from bench.sandbox.bench import _supervisor

from tegu.sandbox.fn.client import Answer, Caller
from tegu.sandbox.fn.deployment import deploy
from tegu.sandbox.fn.java import FLAGS
from tegu.sandbox.fn.spec import FunctionSpec
from tegu.store import Store

__all__ = ["run"]

EVENT = "12"


def run(quick: bool) -> BenchResult:
    """Measure with the JDK of this machine."""
    for program in ("javac", "jar", "java"):
        if shutil.which(program) is None:
            raise BenchError(f"{program} is not installed", hint="install default-jdk-headless")
    with tempfile.TemporaryDirectory(prefix="tegu-b", dir="/tmp") as name:
        scratch = Path(name)
        with _supervisor(scratch / "s", warm=4) as path:
            return _run(7 if quick else 25, scratch, path)


def _run(turns: int, scratch: Path, path: Path) -> BenchResult:
    source = scratch / "code"
    source.mkdir()
    _do("javac", "-d", str(source), str(Path(__file__).with_name("Service.java")))
    _do("jar", "-cfe", str(source / "app.jar"), "Service", "-C", str(source), ".")
    store = Store(scratch / "store")
    command = ("java", "-jar", "app.jar")
    plain = FunctionSpec(
        "plain", runtime="exec", command=command, pids=256, disk=2**28, timeout=600, train=EVENT
    )
    ways = {
        "as it comes": plain,
        "first compiler, serial collector": replace(
            plain, name="flags", command=("java", *FLAGS, *command[1:])
        ),
        "and an archive of classes (default)": replace(plain, name="archive", runtime="java"),
    }
    calls: dict[str, Callable[[], tuple[float, float]]] = {
        "java, in no box": lambda: _bare([*command[:1], "-jar", str(source / "app.jar")])
    }
    deployed: dict[str, float] = {}
    for way, spec in ways.items():
        begun = time.perf_counter()
        deploy(spec, source, path=path, store=store)
        deployed[way] = time.perf_counter() - begun
        calls[way] = _caller(path, store, spec.name)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in calls}
    for turn in range(turns + 1):
        for way, call in calls.items():
            found = call()
            if turn:  # the first of each warms the page cache
                times[way].append(found)
    rows: list[dict[str, Any]] = []
    base = _median(times["as it comes"], 1)
    for way, each in times.items():
        wall, cpu = _median(each, 0), _median(each, 1)
        rows.append(
            {
                "a Java service": way,
                "p50 ms": wall * 1000,
                "CPU ms": cpu * 1000,
                "times less CPU": base / cpu,
                "deploy s": deployed.get(way),
            }
        )
    best = base / _median(times["and an archive of classes (default)"], 1)
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    notes = [
        java.splitlines()[0],
        "Checkpoints (CRIU) are not made; the bar was set for them.",
    ]
    bars = [Bar.at_least("times less CPU than as it comes", best, 15)]
    return BenchResult("java", machine(), rows, bars, notes)


def _do(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: {done.stderr.strip()}")


def _median(each: list[tuple[float, float]], which: int) -> float:
    return statistics.median(pair[which] for pair in each)


def _bare(argv: list[str]) -> tuple[float, float]:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(argv, input=EVENT.encode(), capture_output=True, check=True)
    took = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, used


def _caller(path: Path, store: Store, name: str) -> Callable[[], tuple[float, float]]:
    caller = Caller(path, store.root)

    def call() -> tuple[float, float]:
        begun = time.perf_counter()
        answer: Answer = caller.call_raw(name, EVENT.encode(), "json").check()
        account = answer.account
        return time.perf_counter() - begun, account["user"] + account["system"]

    return call
