"""What does a box's network cost? Ours beside pasta and slirp4netns, and beside no isolation.

Two network namespaces of the bench's own are the host and the outside, joined by a pair of
devices; everything but the outside's server runs in the host's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench.common import Bar, BenchError, BenchResult, machine

from tegu.sandbox.client import run as run_box
from tegu.sandbox.spec import BoxSpec

__all__ = ["run"]

_SOURCE = Path(__file__).parents[2] / "src"
_OUTSIDE = "203.0.113.10"
_SERVER = """
import socket, threading
def give(c):
    kind = c.recv(1)
    try:
        if kind == b"x":
            block = bytes(1 << 20)
            while True: c.sendall(block)
        c.sendall(b"hi")
    except OSError: pass
    c.close()
s = socket.create_server(("0.0.0.0", 9000), backlog=512)
print("up", flush=True)
while True: threading.Thread(target=give, args=(s.accept()[0],), daemon=True).start()
"""
_ASK = f"""
import socket, time
def ask():
    s = socket.create_connection(("{_OUTSIDE}", 9000), 30); s.send(b"a"); s.recv(9); s.close()
"""
_FIRST = _ASK + "ask()"
_MANY = (
    _ASK
    + """
for _ in range(20): ask()
took = []
for _ in range({n}):
    t = time.perf_counter(); ask(); took.append(time.perf_counter() - t)
took.sort(); print(took[len(took) // 2] * 1e3)
"""
)
_FLOW = f"""
import socket, time
s = socket.create_connection(("{_OUTSIDE}", 9000), 30); s.send(b"x")
room = bytearray(1 << 20); n = 0; t = time.perf_counter()
while time.perf_counter() - t < {{seconds}}: n += s.recv_into(room)
print(n / (time.perf_counter() - t) / 1e6)
"""

_DEADLINE = 120.0

_Way = Callable[[str], str]


def _sh(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True, capture_output=True)


@contextmanager
def _space() -> Iterator[list[str]]:
    """Yield the command that enters a new network namespace."""
    holder = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", "echo up; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield ["nsenter", "-t", str(holder.pid), "-n"]
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def _world() -> Iterator[list[str]]:
    """Yield the command that enters the host's namespace; the outside serves beside it."""
    with ExitStack() as stack:
        host, outside = stack.enter_context(_space()), stack.enter_context(_space())
        _sh(
            f"ip link add w0 netns {host[2]} type veth peer name w1 netns {outside[2]}; "
            f"{' '.join(host)} sh -ec 'ip link set lo up; ip link set w0 up; "
            "ip addr add 198.51.100.1/24 dev w0; ip route add default via 198.51.100.2'; "
            f"{' '.join(outside)} sh -ec 'ip link set lo up; ip link set w1 up; "
            f"ip addr add 198.51.100.2/24 dev w1; ip addr add {_OUTSIDE}/32 dev lo'"
        )
        server = subprocess.Popen([*outside, sys.executable, "-c", _SERVER], stdout=subprocess.PIPE)
        stack.callback(server.wait)
        stack.callback(server.kill)
        assert server.stdout is not None
        server.stdout.readline()
        yield host


def _output(command: Sequence[str], script: str) -> str:
    done = subprocess.run(
        [*command, "/usr/bin/python3", "-I", "-S", "-c", script],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_DEADLINE,
    )
    if done.returncode:
        raise BenchError(f"{command[-1]}: {done.stderr.strip()[-300:]}")
    return done.stdout


@contextmanager
def _supervisor(host: Sequence[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory, "s")
        reader, writer = os.pipe()
        program = (
            f"import sys; sys.path.insert(0, {str(_SOURCE)!r}); from pathlib import Path; "
            "from tegu.sandbox.keeper import keep; "
            f"sys.exit(keep(Path({str(path)!r}), warm=8, idle_exit=None, ready={writer}))"
        )
        keeper = subprocess.Popen(
            [*host, sys.executable, "-I", "-S", "-c", program],
            pass_fds=[writer],
            env={**os.environ, "TEGU_SANDBOX_STATE": f"{directory}/state"},
        )
        os.close(writer)
        try:
            if os.read(reader, 1) != b"1":
                raise BenchError("the supervisor did not start")
            yield path
        finally:
            os.close(reader)
            keeper.terminate()
            keeper.wait(60)


def _slirp(host: Sequence[str], script: str) -> str:
    """Start a namespace, and slirp4netns for it; then the program, once that says it is ready."""
    reader, writer = os.pipe()
    wait = 'echo up; read go; exec /usr/bin/python3 -I -S -c "$0"'
    program = subprocess.Popen(
        [*host, "unshare", "-n", "sh", "-c", wait, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    program.stdout.readline()
    command = ["slirp4netns", "--configure", f"--ready-fd={writer}", str(program.pid), "tap0"]
    slirp = subprocess.Popen(
        [*host, *command],
        pass_fds=[writer],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        if os.read(reader, 1) != b"1":
            raise BenchError("slirp4netns did not start")
        said, _ = program.communicate("go\n", timeout=_DEADLINE)
    finally:
        os.close(reader)
        for process in (slirp, program):
            process.kill()
            process.wait()
    return said


def _ways(host: Sequence[str], path: Path) -> dict[str, _Way]:
    spec = BoxSpec(network="full")
    listed = BoxSpec(network=[f"{_OUTSIDE}:9000", "example.org"])

    def box(spec: BoxSpec) -> _Way:
        def start(script: str) -> str:
            command = ["/usr/bin/python3", "-I", "-S", "-c", script]
            done = run_box(command, box=spec, timeout=120, path=path)
            if done.exit_code:
                raise BenchError(f"box: {done.stderr.decode()[-300:]}")
            return done.text

        return start

    found: dict[str, _Way] = {
        "no isolation": lambda script: _output(host, script),
        "box, full": box(spec),
        "box, a list": box(listed),
    }
    if shutil.which("pasta"):
        # As root, as the others: it would become another user, and fails where it may not.
        pasta = [*host, "pasta", "-4", "--config-net", "-q", "--runas", "0", "--"]
        found["pasta"] = lambda script: _output(pasta, script)
    if shutil.which("slirp4netns"):
        found["slirp4netns"] = lambda script: _slirp(host, script)
    return found


def _relay_kib(root: Path = Path("/proc")) -> int:
    """Return the resident share (PSS) of the relay that this bench's supervisor started, in KiB."""
    for entry in root.glob("[0-9]*/cmdline"):
        try:
            if b"tegu.sandbox.net.relay" in entry.read_bytes():
                lines = (entry.parent / "smaps_rollup").read_text().splitlines()
                return next(int(x.split()[1]) for x in lines if x.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return 0


def run(quick: bool) -> BenchResult:
    """Measure each way in turn, so that what else the machine does falls on all of them."""
    if os.geteuid() != 0:
        raise BenchError("network namespaces of its own: this bench needs root")
    starts, flows, seconds = (15, 3, 1) if quick else (60, 7, 3)
    with _world() as host, _supervisor(host) as path:
        ways = _ways(host, path)
        first: dict[str, list[float]] = {name: [] for name in ways}
        many: dict[str, list[float]] = {name: [] for name in ways}
        flow: dict[str, list[float]] = {name: [] for name in ways}
        for name, way in ways.items():
            way(_FIRST)  # whatever is made the first time
            del name
        for _ in range(starts):
            for name, way in ways.items():
                begun = time.perf_counter()
                way(_FIRST)
                first[name].append((time.perf_counter() - begun) * 1e3)
        for _ in range(flows):
            for name, way in ways.items():
                many[name].append(json.loads(way(_MANY.format(n=100))))
                flow[name].append(json.loads(way(_FLOW.format(seconds=seconds))))
        kib = _relay_kib()
    rows = [
        {
            "way": name,
            "program to first answer ms": round(median(first[name]), 1),
            "connection and answer ms": round(median(many[name]), 2),
            "MB/s": round(median(flow[name])),
        }
        for name in ways
    ]
    bars = [
        Bar.at_most(f"{what} of a box with a list, of {peer}'s", _paired(ours, theirs), limit)
        for peer in ("pasta", "slirp4netns")
        if peer in ways
        for what, ours, theirs, limit in (
            ("first answer", first["box, a list"], first[peer], 1.0),
            ("connection", many["box, a list"], many[peer], 2.0),
            ("time for a byte", _inverse(flow["box, a list"]), _inverse(flow[peer]), 2.0),
        )
    ]
    notes = [
        "A box is a whole container; pasta and slirp4netns make a namespace for its network only, "
        "and filter nothing.",
        f"The relay, one for all boxes: {kib} KiB (PSS).",
    ]
    return BenchResult("sandbox_net", machine(), rows, bars, notes)


def _inverse(values: Sequence[float]) -> list[float]:
    return [1 / v for v in values]


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(median(a / b for a, b in zip(ours, theirs, strict=True)), 2)
