"""A service over HTTP of the tests' own, with a supervisor of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tegu.errors import SandboxError
from tegu.sandbox.client import supervisor

TOKEN = "e2b_00112233445566778899"


class Service:
    """`tegu sandbox serve --http` under test, started by the command `within`."""

    def __init__(self, *options: str, within: Sequence[str] = ()) -> None:
        # Short, as the address of a UNIX socket has 108 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="tegu-h", dir="/tmp"))
        tokens = self.directory / "tokens"
        tokens.touch(mode=0o600)
        tokens.write_text(f"# for tests\n{TOKEN}\n")
        self.socket = self.directory / "h"
        self.supervisor = self.directory / "s"
        self.log = self.directory / "log"
        command = [
            *(*within, sys.executable, "-m", "tegu", "sandbox", "serve", "--warm", "2"),
            *("--socket", str(self.supervisor), "--http", f"unix:{self.socket}"),
            *("--http", "127.0.0.1:0", "--token-file", str(tokens), *options),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
            )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().strip() for _ in range(2)]
        if not lines[1]:
            self.process.wait()
            pytest.fail(f"the service did not start: {self.log.read_text()}")
        self.url = lines[1]

    @property
    def port(self) -> int:
        """Where it listens on TCP."""
        return int(self.url.rpartition(":")[2])

    def stop(self) -> int:
        """End it as a service manager does; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        with suppress(SandboxError):
            supervisor("shutdown", path=self.supervisor)  # one that took a dead one's place
        shutil.rmtree(self.directory, ignore_errors=True)
        return code

    def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, Any]:
        """Ask; returns the status and what the JSON says (or the bytes, where there is none)."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        request = urllib.request.Request(
            self.url + path,
            data=data.encode() if isinstance(data, str) else data,
            method=method,
            headers={k.replace("_", "-"): v for k, v in headers.items()},
        )
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, said = answer.status, answer.read()
                kind = answer.headers.get_content_type()
        except urllib.error.HTTPError as e:
            status, said, kind = e.code, e.read(), e.headers.get_content_type()
            if status == 500:
                pytest.fail(f"{said!r}: {self.log.read_text()}")
        return status, json.loads(said) if kind == "application/json" and said else said


class OverSocket(HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The service that tests share."""
    one = Service()
    yield one
    one.stop()


@pytest.fixture
def own() -> Iterator[Service]:
    """A service of a test's own, to break."""
    one = Service()
    yield one
    one.stop()


@pytest.fixture
def e2b_settings(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """What a user of E2B's clients sets, and nothing else of theirs."""
    for name in [n for n in os.environ if n.startswith("E2B_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("E2B_API_URL", service.url)
    monkeypatch.setenv("E2B_SANDBOX_URL", service.url)
    monkeypatch.setenv("E2B_API_KEY", TOKEN)
    return service
