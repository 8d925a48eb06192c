"""Functions over HTTP, as any client sees them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.conftest import Served, until

from tegu.errors import SandboxError, UsageError
from tegu.sandbox.fn.client import running
from tegu.sandbox.fn.deployment import deploy, remove
from tegu.sandbox.fn.http import Server, serve
from tegu.sandbox.fn.spec import FunctionSpec
from tegu.store import Store

TOKEN = "0123456789abcdef0123456789abcdef"
CODE = """
import os, time

def main(event, context):
    if event == "boom":
        raise ValueError("no")
    if event == "leave":
        os._exit(3)
    if isinstance(event, (int, float)) and event:
        time.sleep(event)
    if event == "who":
        return context.tenant
    return event
"""


class Front:
    """A front on TCP (loopback), with a function behind it."""

    def __init__(self, served: Served, root: Path) -> None:
        self.store = Store(root / "store")
        self.path = served.path
        source = root / "app.py"
        source.write_text(CODE)
        options: dict[str, Any] = {"concurrency": 1, "queue": 1, "timeout": 300.0}
        spec = FunctionSpec("echo", handler="app:main", max_event=10_000, **options)
        deploy(spec, source, path=self.path, store=self.store)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.server = Server(listener, TOKEN, supervisor=served.path, store=self.store)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.socket.close()
        self._thread.join()
        with suppress(SandboxError):
            remove("echo", path=self.path, store=self.store)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of one request."""
        link = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            head.update({name.replace("_", "-"): value for name, value in headers.items()})
            link.request(method, path, body, head)
            answer = link.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            link.close()

    def running(self) -> int:
        return int(running(self.path, self.store)["echo"]["running"])


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Served]:
    one = Served(warm=0)
    yield one
    one.stop()


@pytest.fixture
def front(supervisor: Served, tmp_path: Path) -> Iterator[Front]:
    one = Front(supervisor, tmp_path)
    yield one
    one.close()


def test_a_call(front: Front) -> None:
    status, headers, body = front.ask("POST", "/functions/echo", b'{"a": [1, "\xc3\xa4"]}')
    assert status == 200
    assert json.loads(body) == {"a": [1, "ä"]}
    assert headers["Content-Type"] == "application/json"
    assert json.loads(headers["Tegu-Account"])["wall"] > 0
    status, headers, body = front.ask(
        "POST", "/functions/echo", b"\x00\xff", Content_Type="application/octet-stream"
    )
    assert (status, body) == (200, b"\x00\xff")
    assert headers["Content-Type"] == "application/octet-stream"
    status, _, body = front.ask("POST", "/functions/echo", b'"who"', Tegu_Tenant="me")
    assert (status, body) == (200, b'"me"')


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/functions/echo", b'"boom"', 500, "raised"),
        ("/functions/echo", b'"leave"', 502, "exited"),
        ("/functions/echo", b"{", 400, "http"),
        ("/functions/echo", b"[" * 9_999, 400, "http"),
        ("/functions/echo", b'"' + b"x" * 10_001 + b'"', 413, "event_too_large"),
        ("/functions/nothing", b"1", 404, "http"),
        ("/functions/..%2f..%2fetc", b"1", 404, "http"),
        ("/functions/", b"1", 404, "http"),
        ("/elsewhere", b"1", 404, "http"),
    ],
)
def test_what_goes_wrong_has_a_status(
    front: Front, path: str, body: bytes, status: int, kind: str
) -> None:
    got, _, said = front.ask("POST", path, body)
    assert got == status
    assert json.loads(said)["error"]["kind"] == kind


def test_nobody_calls_without_the_token(front: Front) -> None:
    for header in ("", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        status, headers, _ = front.ask("GET", "/functions", Authorization=header)
        assert status == 401
        assert headers["WWW-Authenticate"] == "Bearer"


def test_what_there_is(front: Front) -> None:
    assert front.ask("GET", "/healthz")[0] == 200
    status, _, body = front.ask("GET", "/functions")
    assert status == 200
    (one,) = json.loads(body)["functions"]
    assert (one["name"], one["warm"]) == ("echo", True)


def test_a_full_queue_and_callers_who_hang_up(front: Front) -> None:
    links = []
    for wanted in (1, 2):
        link = http.client.HTTPConnection("127.0.0.1", front.port)
        head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        link.request("POST", "/functions/echo", b"200", head)
        links.append(link)
        assert until(lambda n=wanted: _asked(front) == n)  # type: ignore[misc]
    status, headers, body = front.ask("POST", "/functions/echo", b"1")
    assert status == 429
    assert int(headers["Retry-After"]) >= 1
    assert json.loads(body)["error"]["kind"] == "queue_full"
    for link in links:
        link.close()
    assert until(lambda: _asked(front) == 0)
    assert front.ask("POST", "/functions/echo", b"0")[0] == 200


def _asked(front: Front) -> int:
    about = running(front.path, front.store)["echo"]
    return int(about["running"]) + int(about["waiting"])


def test_several_requests_on_one_connection(front: Front) -> None:
    link = http.client.HTTPConnection("127.0.0.1", front.port)
    head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    for n in range(3):
        link.request("POST", "/functions/echo", b'"n%d"' % n, head)
        answer = link.getresponse()
        assert (answer.status, answer.read()) == (200, b'"n%d"' % n)
    link.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /functions/echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /functions/echo HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /functions/echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
        b"POST /functions/echo HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_bad_requests_are_refused_and_nothing_breaks(front: Front, raw: bytes) -> None:
    authorised = raw.replace(
        b"HTTP/1.1\r\n", f"HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
    )
    with socket.create_connection(("127.0.0.1", front.port)) as link:
        link.sendall(authorised)
        link.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while data := link.recv(65536):
                answer += data
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert front.ask("GET", "/healthz")[0] == 200


def test_tcp_is_refused_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a token is needed"):
        serve(None, "127.0.0.1:0", None)
    token = tmp_path / "token"
    token.write_text("short")
    token.chmod(0o600)
    with pytest.raises(UsageError, match="16 printable characters"):
        serve(None, "127.0.0.1:0", token)
    token.write_text(TOKEN)
    token.chmod(0o644)
    with pytest.raises(UsageError, match="others may read"):
        serve(None, "127.0.0.1:0", token)
    token.chmod(0o600)
    for address in ("127.0.0.1", "127.0.0.1:x", ":80", "127.0.0.1:99999"):
        with pytest.raises(UsageError, match="is not HOST:PORT"):
            serve(None, address, token)
    with pytest.raises(UsageError, match="no-such-file"):
        serve(None, "127.0.0.1:0", tmp_path / "no-such-file")


def test_a_signal_as_a_connection_comes_ends_it(supervisor: Served, tmp_path: Path) -> None:
    path = supervisor.directory / "g"
    env = {**os.environ, "TEGU_SANDBOX_SOCKET": str(supervisor.path), "TEGU_STORE": str(tmp_path)}
    for _ in range(6):
        front = subprocess.Popen(
            [sys.executable, "-m", "tegu", "fn", "serve", "--socket", str(path)], env=env
        )
        try:
            assert until(path.is_socket, 60)
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(path))
                link.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                front.send_signal(signal.SIGTERM)
                assert front.wait(60) == 0
        finally:
            front.kill()
            front.wait()
        assert not path.exists()


def test_the_command_serves_on_a_socket_of_its_users(supervisor: Served, tmp_path: Path) -> None:
    path = supervisor.directory / "f"
    env = {**os.environ, "TEGU_SANDBOX_SOCKET": str(supervisor.path), "TEGU_STORE": str(tmp_path)}
    command = [sys.executable, "-m", "tegu", "fn", "serve", "--socket", str(path)]
    front = subprocess.Popen(command, env=env)
    try:
        assert until(path.is_socket, 60)
        assert path.stat().st_mode & 0o777 == 0o600
        again = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert again.returncode == 20
        assert "served" in again.stderr
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(path))
        link.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in link.recv(65536)
        link.close()
    finally:
        front.send_signal(signal.SIGTERM)
        assert front.wait(60) == 0
    assert not path.exists()
