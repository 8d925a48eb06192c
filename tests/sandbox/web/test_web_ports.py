"""Ports in sandboxes: what listens there, reached through the service."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.sandbox.conftest import until
from tests.sandbox.web.conftest import TOKEN, Service

SERVER = r"""
import base64, hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            return self.websocket()
        if self.path == "/broken":
            self.send_response(200); self.send_header("Content-Length", "100"); self.end_headers()
            self.wfile.write(b"half"); self.close_connection = True
            return
        self.answer(302 if self.path == "/away" else 200, b"")
    def do_POST(self):
        self.answer(201, self.rfile.read(int(self.headers.get("Content-Length", 0))))
    def answer(self, status, body):
        names = " ".join(sorted(k for k in self.headers if k[:2] in ("X-", "Au", "E2")))
        text = f"{self.command} {self.path} [{names}] ".encode() + body
        self.send_response(status); self.send_header("Location", "/there")
        self.send_header("Content-Length", str(len(text))); self.end_headers()
        self.wfile.write(text)
    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101); self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade"); self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        head = self.rfile.read(2); mask = self.rfile.read(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
        self.wfile.write(bytes([0x81, len(data) + 5]) + b"back " + data + b"\x88\x00")
        self.close_connection = True
ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


@pytest.fixture
def box(service: Service) -> Iterator[Any]:
    _, made = service.call("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 120})
    one = f"/v1/sandboxes/{made['sandboxID']}"
    service.call("PUT", f"{one}/files/content?path=/server", SERVER.encode())
    assert service.call("POST", f"{one}/processes", {"command": "python3 /server"})[0] == 201
    assert until(lambda: service.call("GET", f"{one}/ports/8000/up")[0] == 200)
    yield made
    service.call("DELETE", one)


def test_requests_are_sent_on(service: Service, box: Any) -> None:
    one = f"/v1/sandboxes/{box['sandboxID']}/ports/8000"
    status, said = service.call("GET", f"{one}/a%20b/c?x=1&y=%2F", X_Mine="yes", X_API_Key=TOKEN)
    assert (status, said) == (200, b"GET /a%20b/c?x=1&y=%2F [X-Mine] ")
    status, said = service.call("POST", f"{one}/", b"z" * 300_000)
    assert status == 201 and said == b"POST / [] " + b"z" * 300_000
    status, error = service.call("GET", one.replace("8000", "8001") + "/")
    assert status == 502 and "port is not open" in error["message"]
    status, error = service.call("GET", one.replace("8000", "80000") + "/")
    assert (status, error["error_code"]) == (400, "invalid_argument")


def test_by_host_name_and_who_may(service: Service, box: Any) -> None:
    host = f"8000-{box['sandboxID']}.sandbox.example"
    traffic = {"E2b_Traffic_Access_Token": box["trafficAccessToken"]}
    status, said = service.call(
        "GET", "/v1/x?y", token=None, Host=host, Authorization="Bearer its-own", **traffic
    )
    assert (status, said) == (200, b"GET /v1/x?y [Authorization] ")
    for headers in ({}, {"E2b_Traffic_Access_Token": "x"}):
        status, error = service.call("GET", "/", Host=host, **headers)
        assert (status, error["error_code"]) == (401, "unauthenticated")
    # It opens the ports, and not the sandbox.
    inside = host.replace("8000", "49983")
    assert service.call("GET", "/envs", token=None, Host=inside, **traffic)[0] == 401


def test_what_breaks_off_is_not_taken_for_whole(service: Service, box: Any) -> None:
    async def ask() -> None:
        async with aiohttp.ClientSession(headers={"X-API-Key": TOKEN}) as session:
            url = f"{service.url}/v1/sandboxes/{box['sandboxID']}/ports/8000"
            async with session.get(f"{url}/away", allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (302, "/there")
            with pytest.raises(aiohttp.ClientError):
                async with session.get(f"{url}/broken") as answer:
                    await answer.read()

    asyncio.run(ask())


def test_websockets_are_sent_on(service: Service, box: Any) -> None:
    async def ask() -> list[Any]:
        url = f"{service.url}/v1/sandboxes/{box['sandboxID']}/ports/8000/ws"
        async with (
            aiohttp.ClientSession(headers={"X-API-Key": TOKEN}) as session,
            session.ws_connect(url) as ws,
        ):
            await ws.send_str("and forth")
            return [m.data async for m in ws]

    assert asyncio.run(ask()) == ["back and forth"]


@pytest.mark.slow
def test_e2bs_client_at_a_domain_with_tls() -> None:
    """As docs/sandbox-api.md says: E2B_DOMAIN, and names under it that lead to the service."""
    program = """
import ssl, urllib.request
from e2b import Sandbox
one = Sandbox.create(timeout=60)
assert one.commands.run("echo hello").stdout == "hello\\n"
one.files.write("/srv/index.html", "served")
one.commands.run("cd /srv; python3 -m http.server 8000", background=True, timeout=0)
host = one.get_host(8000)
assert host == f"8000-{one.sandbox_id}.{one.sandbox_domain}"
request = urllib.request.Request(f"https://127.0.0.1:{host.rpartition(':')[2]}/index.html")
request.add_header("Host", host)
request.add_header("E2b-Traffic-Access-Token", one.traffic_access_token)
context = ssl.create_default_context()
context.check_hostname = False
for attempt in range(100):
    try:
        print(urllib.request.urlopen(request, context=context).read().decode())
        break
    except urllib.error.HTTPError as e:
        assert e.code == 502 and "port is not open" in e.read().decode()
one.kill()
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        port = authority(Path(directory))
        domain = f"box.localhost:{port}"
        one = Service(
            *("--http", f"127.0.0.1:{port}", "--domain", domain),
            *("--tls-cert", f"{directory}/cert", "--tls-key", f"{directory}/key"),
        )
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                env={
                    "E2B_DOMAIN": domain,
                    "E2B_API_KEY": TOKEN,
                    "SSL_CERT_FILE": f"{directory}/ca",
                    "PATH": "/usr/bin:/bin",
                },
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if "dns error" in done.stderr:
                pytest.skip("names under localhost are not resolved here (RFC 6761)")
            assert done.returncode == 0, done.stderr
            assert done.stdout == "served\n"
        finally:
            one.process.send_signal(signal.SIGINT)
            assert one.process.wait(60) == 0
            one.stop()


def authority(directory: Path) -> int:
    """Make a certificate authority and a certificate; returns a port that is free."""
    new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes")
    (directory / "ext").write_text(
        "subjectAltName=DNS:api.box.localhost,DNS:*.box.localhost\nbasicConstraints=CA:FALSE\n"
    )
    for command in (
        (*new, "-x509", "-days", "2", "-keyout", "cakey", "-out", "ca", "-subj", "/CN=tegu test"),
        (*new, "-keyout", "key", "-out", "csr", "-subj", "/CN=tegu"),
        (
            *("openssl", "x509", "-req", "-in", "csr", "-CA", "ca", "-CAkey", "cakey"),
            *("-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", "cert"),
        ),
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_without_the_compiled_launcher() -> None:
    """Boxes in Python do all that is asked of those in C: pids, renames, sockets, terminals."""
    one = Service("--no-launcher")
    try:
        _, made = one.call("POST", "/v1/sandboxes", {"timeout": 120})
        box = f"/v1/sandboxes/{made['id']}"
        one.call("PUT", f"{box}/files/content?path=/server", SERVER.encode())
        _, process = one.call("POST", f"{box}/processes", {"command": ["python3", "/server"]})
        comm = f"cat /proc/{process['pid']}/comm"
        assert one.call("POST", f"{box}/run", {"command": comm})[1]["stdout"] == "python3\n"
        assert until(lambda: one.call("GET", f"{box}/ports/8000/up")[0] == 200)
        moved = one.call("POST", f"{box}/files/move", {"from": "/server", "to": "/a/b/c"})
        assert moved[0] == 200 and one.call("GET", f"{box}/files/stat?path=/a/b/c")[0] == 200
        asked = {"command": "test -t 0 && exit 6", "terminal": {"rows": 5, "columns": 6}}
        _, terminal = one.call("POST", f"{box}/processes", asked)
        where = f"{box}/processes/{terminal['pid']}"
        assert until(lambda: one.call("GET", where)[1]["exit_code"] == 6)
        assert one.call("POST", f"{box}/timeout", {"seconds": 0.5})[0] == 200
        assert until(lambda: one.call("GET", box)[0] == 404)
        assert "reached its timeout of 0.5 s" in one.call("GET", box)[1]["message"]
    finally:
        assert one.stop() == 0
