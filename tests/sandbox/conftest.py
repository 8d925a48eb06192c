"""One supervisor for all tests of a worker, on a socket of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.world import Space, why_not, world

from tegu.linux import sklookup
from tegu.sandbox.client import Result, Sandbox, box_spec, run
from tegu.sandbox.native import find_launcher

SOURCE = Path(__file__).parents[2] / "src"


class Served:
    """A supervisor under test: its socket, and the process that keeps it.

    It is started by the command `within`, which must become what it starts.
    """

    def __init__(self, warm: int, *, compiled: bool = True, within: Sequence[str] = ()) -> None:
        # Short, as the address of a UNIX socket has 108 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="tegu-t", dir="/tmp"))
        self.path = self.directory / "s"
        self.state = Path(os.environ.get("TEGU_SANDBOX_STATE", self.directory / "state"))
        reader, writer = os.pipe()
        program = (
            f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from pathlib import Path; "
            "from tegu.sandbox.keeper import keep; "
            f"sys.exit(keep(Path(sys.argv[1]), warm={warm}, idle_exit=None, ready={writer}, "
            f"compiled={compiled}))"
        )
        self.keeper = subprocess.Popen(
            [*within, sys.executable, "-I", "-S", "-c", program, str(self.path)],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TEGU_SANDBOX_STATE": str(self.state)},
            pass_fds=[writer],
        )
        os.close(writer)
        if os.read(reader, 1) != b"1":
            self.keeper.wait()
            pytest.fail("the supervisor did not start")
        os.close(reader)

    @property
    def supervisor(self) -> int:
        """The supervisor's own pid: its keeper's grandchild."""
        return children(children(self.keeper.pid)[0])[0]

    def stop(self) -> None:
        """End it and remove its directory."""
        if self.keeper.poll() is None:
            self.keeper.send_signal(signal.SIGTERM)
            self.keeper.wait(30)
        shutil.rmtree(self.directory)


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def descendants(pid: int) -> set[int]:
    """Return the pids of all that descend from a process."""
    found: set[int] = set()
    queue = [pid]
    while queue:
        below = children(queue.pop())
        found.update(below)
        queue += below
    return found


def marked_sleep() -> list[str]:
    """Return a command that sleeps for long, and that no other test, worker or session runs."""
    return ["sleep", f"{4000 + secrets.randbelow(1000)}.{secrets.randbits(60)}"]


def pids_of(argv: list[str]) -> list[int]:
    """Return the pids of all processes of this machine that run exactly this command."""
    wanted = [a.encode() for a in argv]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "cmdline").read_bytes().split(b"\0")[:-1] == wanted:
                    found.append(int(entry.name))
    return found


def until(what: Callable[[], bool], seconds: float = 30) -> bool:
    """Wait until something holds; returns whether it came to that."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="session", params=["compiled", "python"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """The supervisor that tests share: one with the compiled launcher, and one without."""
    compiled = request.param == "compiled"
    if compiled and find_launcher() is None:
        pytest.skip("the launcher was not built: there was no C compiler at ./dev setup")
    one = Served(warm=2, compiled=compiled)
    yield one
    one.stop()


@dataclass(frozen=True)
class Net:
    """A supervisor on a host with an outside, both in namespaces of their own (`world`)."""

    host: Space
    served: Served

    def box(self, network: str | Sequence[str], **more: Any) -> Sandbox:
        """Start a box that may reach what `network` says."""
        return Sandbox.create(network=network, path=self.served.path, **more)

    def python(self, network: str | Sequence[str], script: str, **more: Any) -> Result:
        """Run a script in a box that may reach what `network` says."""
        spec = box_spec(network=network, **more)
        return run(["python3", "-c", script], box=spec, timeout=400, path=self.served.path)


@pytest.fixture(scope="session")
def net() -> Iterator[Net]:
    """A supervisor in a world, which tests share."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    try:
        sklookup.try_load()
    except OSError as e:
        pytest.skip(f"this machine's kernel or container refuses {e.filename}: {e.strerror}")
    with world() as host:
        one = Served(warm=2, within=host.enter())
        yield Net(host, one)
        one.stop()


@pytest.fixture
def fresh_net(net: Net) -> Iterator[Net]:
    """A supervisor of a test's own in the same world, to break."""
    one = Served(warm=2, within=net.host.enter())
    yield Net(net.host, one)
    one.stop()


@pytest.fixture
def fresh() -> Iterator[Served]:
    """A supervisor of a test's own, to break."""
    one = Served(warm=2)
    yield one
    one.stop()


@pytest.fixture
def path(served: Served, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared supervisor's socket, which clients find by themselves as well."""
    monkeypatch.setenv("TEGU_SANDBOX_SOCKET", str(served.path))
    monkeypatch.setenv("TEGU_SANDBOX_STATE", str(served.state))
    return served.path


@pytest.fixture
def box(path: Path) -> Iterator[Sandbox]:
    """A box that lives on."""
    with Sandbox.create() as one:
        yield one
