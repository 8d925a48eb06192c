"""Functions beside containers: a fork of a zygote with namespaces of its own, called, answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.common import BenchError

from tegu.sandbox import wire
from tegu.sandbox.fn.client import Caller
from tegu.sandbox.fn.deployment import deploy
from tegu.sandbox.fn.spec import FunctionSpec
from tegu.sandbox.launch import connect
from tegu.store import Store

__all__ = ["Functions"]

_CODE = """
import time

def main(event):
    if event:
        time.sleep(event)
    return event
"""
_IDLE = 20


class Functions:
    """A function that returns at once, deployed to the supervisor at `path`."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self._path = path
        self._store = Store(scratch / "functions")
        source = scratch / "app.py"
        source.write_text(_CODE)
        spec = FunctionSpec("bench", handler="app:main", timeout=120, concurrency=32)
        deploy(spec, source, path=path, store=self._store)

    def start(self) -> Callable[[], float]:
        """Return one call through an open connection, in milliseconds."""
        caller = Caller(self._path, self._store.root)

        def call() -> float:
            begun = time.perf_counter()
            answer = caller.call("bench", 0)
            took = (time.perf_counter() - begun) * 1000
            if answer.outcome != "ok":
                raise BenchError(f"tegu fn: {answer.outcome}: {answer.data!r}")
            return took

        return call

    def flood(self, concurrency: int, seconds: float) -> float:
        """Return calls a second with `concurrency` under way at any time."""
        link = connect(self._path, start=False)
        request = {"op": "fn", "do": "invoke", "store": str(self._store.root), "name": "bench"}
        begun = time.monotonic()
        end, done, waiting = begun + seconds, 0, 0
        while waiting or time.monotonic() < end:
            while waiting < concurrency and time.monotonic() < end:
                wire.send(link, {**request, "n": 1, "payload": "0"})
                waiting += 1
            answer, _ = wire.receive(link)
            if answer is None or answer.get("ok", {}).get("outcome") != "ok":
                raise BenchError(f"tegu fn: {answer}")
            waiting -= 1
            done += 1
        link.close()
        return done / (time.monotonic() - begun)

    def idle(self) -> float:
        """Return MiB (proportional set size) of one invocation that waits, of twenty."""
        zygote = self._zygote()
        link = connect(self._path, start=False)
        request = {"op": "fn", "do": "invoke", "store": str(self._store.root), "name": "bench"}
        for n in range(_IDLE):
            wire.send(link, {**request, "n": n, "payload": "60"})
        end = time.monotonic() + 60
        while len(forks := _children(zygote)) < _IDLE or not all(map(_asleep, forks)):
            if time.monotonic() > end:
                raise BenchError("idle functions did not start")
            time.sleep(0.1)
        total = sum(_pss(pid) for pid in forks)
        link.close()  # and what it asked for is killed
        return total / len(forks)

    def _zygote(self) -> int:
        """Return the pid of the Python that invocations are forked from, as seen from here."""
        self.start()()
        mark = b"tegu.sandbox.fn.runtime"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_ours(int(entry.name)):
                try:
                    if mark in (entry / "cmdline").read_bytes():
                        return int(entry.name)
                except OSError:
                    continue
        raise BenchError("the function's zygote was not found")

    def _is_ours(self, pid: int) -> bool:
        """Whether a process descends from the supervisor's keeper."""
        mark = str(self._path).encode()
        while pid > 1:
            try:
                if mark in (Path(f"/proc/{pid}/cmdline")).read_bytes():
                    return True
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                return False
            pid = int(fields[1])
        return False


def _children(pid: int) -> list[int]:
    return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _asleep(pid: int) -> bool:
    """Whether an invocation is in its handler's sleep."""
    try:
        return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return False


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
