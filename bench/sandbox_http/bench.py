"""What does HTTP cost on the way to a sandbox? The library, our API and E2B's client in turn."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from bench.common import Bar, BenchError, BenchResult, machine

from tegu.sandbox import Sandbox

__all__ = ["run"]

_TOKEN = "e2b_0123456789abcdef"
_BIG = 20 * 2**20
_TEXT = "yes 'a line of text' | head -c {}"


@contextmanager
def _service() -> Iterator[tuple[Path, int]]:
    """Serve; yields the supervisor's socket and the port."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        tokens = Path(directory, "tokens")
        tokens.touch(mode=0o600)
        tokens.write_text(_TOKEN)
        command = [sys.executable, "-m", "tegu", "sandbox", "serve", "--warm", "8"]
        command += ["--socket", f"{directory}/s", "--http", "127.0.0.1:0"]
        child = subprocess.Popen(
            [*command, "--token-file", str(tokens)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            url = child.stdout.readline().strip()
            if not url:
                raise BenchError("the service did not start")
            yield Path(directory, "s"), int(url.rpartition(":")[2])
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


class _Way(Protocol):
    name: str

    def make(self) -> None: ...
    def run(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def read(self) -> int: ...
    def output(self, size: int) -> int: ...
    def end(self) -> None: ...


class _Direct:
    name = "library, no HTTP"

    def __init__(self, socket: Path, port: int) -> None:
        self._socket = socket

    def make(self) -> None:
        self._box = Sandbox.create(timeout=600, path=self._socket)

    def run(self) -> None:
        self._box.run(["/bin/true"]).check()

    def write(self, data: bytes) -> None:
        self._box.files.write("/tmp/data", data)

    def read(self) -> int:
        return len(self._box.files.read("/tmp/data"))

    def output(self, size: int) -> int:
        return len(self._box.run(_TEXT.format(size), max_output=size).stdout)

    def end(self) -> None:
        self._box.kill()
        self._box.close()


class _Own:
    name = "our own API"

    def __init__(self, _: Path, port: int) -> None:
        self._link = http.client.HTTPConnection("127.0.0.1", port)
        self._one = ""

    def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        self._link.request(method, path, data, {"Authorization": f"Bearer {_TOKEN}"})
        answer = self._link.getresponse()
        said = answer.read()
        if answer.status >= 300:
            raise BenchError(f"{method} {path}: {answer.status} {said[:200]!r}")
        return said

    def make(self) -> None:
        made = json.loads(self._ask("POST", "/v1/sandboxes", {"timeout": 600}))
        self._one = f"/v1/sandboxes/{made['id']}"

    def run(self) -> None:
        self._ask("POST", f"{self._one}/run", {"command": ["/bin/true"]})

    def write(self, data: bytes) -> None:
        self._ask("PUT", f"{self._one}/files/content?path=/tmp/data", data)

    def read(self) -> int:
        return len(self._ask("GET", f"{self._one}/files/content?path=/tmp/data"))

    def output(self, size: int) -> int:
        order = {"command": _TEXT.format(size)}
        return len(json.loads(self._ask("POST", f"{self._one}/run", order))["stdout"])

    def end(self) -> None:
        self._ask("DELETE", self._one)


class _E2b:
    name = "E2B's Python client"

    def __init__(self, _: Path, port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        os.environ.update(E2B_API_URL=url, E2B_SANDBOX_URL=url, E2B_API_KEY=_TOKEN)
        import e2b

        self._kind = e2b.Sandbox
        self._box: Any = None

    def make(self) -> None:
        self._box = self._kind.create(timeout=600)

    def run(self) -> None:
        self._box.commands.run("exec true")

    def write(self, data: bytes) -> None:
        self._box.files.write("/tmp/data", data)

    def read(self) -> int:
        return len(self._box.files.read("/tmp/data", format="bytes"))

    def output(self, size: int) -> int:
        return len(self._box.commands.run(_TEXT.format(size)).stdout)

    def end(self) -> None:
        self._box.kill()


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def _transfers(way: _Way, data: bytes, mine: dict[str, list[float]]) -> None:
    """Measure what is sent and fetched, and see that it is all there."""
    half = len(data) // 2
    way.make()
    mine.setdefault("write", []).append(_timed(lambda: way.write(data)))
    for what, fetch, size in (
        ("read", way.read, len(data)),
        ("output", lambda: way.output(half), half),
    ):
        begun = time.perf_counter()
        came = fetch()
        mine.setdefault(what, []).append((time.perf_counter() - begun) * 1000)
        if came != size:
            raise BenchError(f"{way.name}: {what}: {came} bytes came, not {size}")
    way.end()


def run(quick: bool) -> BenchResult:
    """Measure all three in turn, in one service."""
    rounds = 15 if quick else 60
    data = os.urandom(_BIG)
    figures: dict[str, dict[str, list[float]]] = {}
    with _service() as (socket, port):
        ways: list[_Way] = [_Direct(socket, port), _Own(socket, port), _E2b(socket, port)]
        for _ in range(rounds):
            for way in ways:
                mine = figures.setdefault(way.name, {})
                for what, call in (("make", way.make), ("run", way.run), ("run", way.run)):
                    mine.setdefault(what, []).append(_timed(call))
                mine.setdefault("end", []).append(_timed(way.end))
        for _ in range(3):
            for way in ways:
                _transfers(way, data, figures[way.name])
    rows = [
        {
            "way": name,
            "make ms": round(median(f["make"]), 1),
            "run ms": round(median(f["run"]), 1),
            "end ms": round(median(f["end"]), 1),
            "write MB/s": round(_BIG / 1000 / median(f["write"])),
            "read MB/s": round(_BIG / 1000 / median(f["read"])),
            "output MB/s": round(_BIG / 2000 / median(f["output"])),
        }
        for name, f in figures.items()
    ]
    direct, own = figures[_Direct.name], figures[_Own.name]
    return BenchResult(
        "sandbox_http",
        machine(),
        rows,
        [
            Bar.at_most(
                "making one over HTTP, of the library's",
                median(own["make"]) / median(direct["make"]),
                3,
            ),
            Bar.at_most(
                "running /bin/true over HTTP, of the library's",
                median(own["run"]) / median(direct["run"]),
                3,
            ),
        ],
        ["E2B's client runs each command by a login shell (bash -l -c), the others as it is."],
    )
