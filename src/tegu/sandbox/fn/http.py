"""Functions over HTTP: `POST /functions/NAME` with the event as its body.

On a UNIX socket that only its own user may use, or on TCP for who knows a token (RFC 6750). A body
of type application/json is an event as JSON, any other is bytes; `Tegu-Tenant` names a tenant.
"""

from __future__ import annotations

import hmac
import http.server
import json
import os
import select
import signal
import socket
import socketserver
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tegu.errors import SandboxError, TeguError, UsageError
from tegu.sandbox.fn.client import Answer, Caller, running
from tegu.sandbox.fn.deployment import deployed
from tegu.sandbox.fn.shelf import name_path
from tegu.sandbox.wire import default_socket
from tegu.store import Store

__all__ = ["STATUS", "Server", "serve"]

STATUS = {
    "ok": 200,
    "raised": 500,
    "exited": 502,
    "crashed": 502,
    "out_of_memory": 502,
    "not_serialisable": 502,
    "result_too_large": 502,
    "timed_out": 504,
    "event_too_large": 413,
    "queue_full": 429,
    "start_failed": 503,
    "cancelled": 503,
}
_MOST_BODY = 64 * 2**20
_MOST_CONNECTIONS = 256
_POLL = 0.2  # seconds until a signal is heeded
_PATIENCE = 60.0
"""Seconds that a connection may be silent while it is its turn to speak."""
_MIN_TOKEN = 16


class _Refused(Exception):  # noqa: N818 - an answer, not a fault
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tegu"
    sys_version = ""
    timeout = _PATIENCE
    server: Server

    def do_GET(self) -> None:
        """GET /healthz, GET /functions."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """POST /functions/NAME."""
        self._answered(self._post)

    def _answered(self, work: Any) -> None:
        try:
            self._authorise()
            work(urlsplit(self.path).path)
        except _Refused as e:
            self.close_connection = True  # its body may be unread
            self._send(e.status, {"error": {"kind": "http", "message": e.message}}, **e.headers)
        except TeguError as e:
            self._send(503, {"error": {"kind": "unavailable", "message": e.message}})
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _authorise(self) -> None:
        token = self.server.token
        if token is None:
            return
        said = self.headers.get("Authorization", "")
        wanted = f"Bearer {token}"
        if not hmac.compare_digest(said.encode(errors="replace"), wanted.encode()):
            raise _Refused(401, "a token is wanted", **{"WWW-Authenticate": "Bearer"})

    def _get(self, path: str) -> None:
        if path == "/healthz":
            self._send(200, {"ok": True})
        elif path == "/functions":
            now = running(self.server.supervisor, self.server.store)
            found = [{**d.to_json(), **now.get(d.name, {})} for d in deployed(self.server.store)]
            self._send(200, {"functions": found})
        else:
            raise _Refused(404, f"there is nothing at {path}")

    def _post(self, path: str) -> None:
        head, _, name = path.rpartition("/")
        if head != "/functions":
            raise _Refused(404, f"there is nothing at {path}")
        name = unquote(name)
        body = self._body()
        try:
            known = name_path(self.server.store.root, name).exists()
        except UsageError:
            known = False
        if not known:
            raise _Refused(404, f"there is no function {name}")
        kind = "json" if self.headers.get_content_type() == "application/json" else "bytes"
        if kind == "json":
            body = body or b"null"
            try:
                json.loads(body)
            except (ValueError, RecursionError) as e:
                raise _Refused(400, f"the event is no JSON: {e}") from e
        answer = self._call(name, body, kind)
        if answer is not None:
            self._tell(answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            raise _Refused(411, "say Content-Length: no transfer encoding is understood")
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit():
            raise _Refused(400, "Content-Length is not a number")
        if int(length) > _MOST_BODY:
            raise _Refused(413, f"more than {_MOST_BODY} bytes")
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise ConnectionResetError
        return body

    def _call(self, name: str, body: bytes, kind: str) -> Answer | None:
        """Call the function; None when the caller hung up meanwhile, which cancels the call."""
        tenant = self.headers.get("Tegu-Tenant", "")
        with Caller(self.server.supervisor, self.server.store.root) as caller:
            caller.send(name, body, kind, tenant=tenant)
            while True:
                ready, _, _ = select.select([caller, self.connection], [], [])
                if caller in ready:
                    return caller.answer()
                if not self.connection.recv(1, socket.MSG_PEEK):
                    self.close_connection = True
                    return None
                # A further request already: its turn comes.
                select.select([caller], [], [])

    def _tell(self, answer: Answer) -> None:
        account = answer.account
        headers = {
            "Tegu-Invocation": answer.id,
            "Tegu-Version": answer.version[:12],
            "Tegu-Account": json.dumps(account, separators=(",", ":")),
        }
        if answer.outcome == "ok":
            kind = "application/json" if answer.kind == "json" else "application/octet-stream"
            self._send_bytes(200, answer.data, kind, headers)
            return
        if answer.retry_after is not None:
            headers["Retry-After"] = str(answer.retry_after)
        try:
            answer.check()
        except SandboxError as e:
            error = {
                "kind": answer.outcome,
                "message": e.message,
                "traceback": getattr(e, "traceback", ""),
            }
            self._send(STATUS.get(answer.outcome, 502), {"error": error}, **headers)

    def _send(self, status: int, body: object, **headers: str) -> None:
        self._send_bytes(status, json.dumps(body).encode() + b"\n", "application/json", headers)

    def _send_bytes(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        """Return who calls; a UNIX socket's other end has no name."""
        return str(self.client_address[0]) if self.client_address else "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is overridden
        """Say nothing: what was called stands in `tegu fn logs`."""


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Listens until `over` is set; a thread for each connection, at most 256 of them."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(
        self,
        listener: socket.socket,
        token: str | None,
        *,
        supervisor: Path | None = None,
        store: Store | None = None,
        over: threading.Event | None = None,
    ) -> None:
        self.token = token
        self.supervisor = supervisor
        self.store = store or Store.default()
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._over = over or threading.Event()
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection once one of those before it is done."""
        while not self._room.acquire(timeout=_POLL):
            if self._over.is_set():
                self.shutdown_request(request)
                return
        try:
            super().process_request(request, client_address)
        except Exception:  # no thread could be started, which would have made room
            self._room.release()
            raise

    def service_actions(self) -> None:
        """End between two connections when it is over; the loop calls this again and again."""
        if self._over.is_set():
            raise KeyboardInterrupt

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line: a fault of a single connection."""
        print(f"tegu: fn serve: {sys.exc_info()[1]!r}", file=sys.stderr)


def serve(path: Path | None, listen: str | None, token_file: Path | None) -> None:
    """Answer until told to stop (SIGTERM, SIGINT). Raises UsageError and SandboxError."""
    token = None if token_file is None else _token(token_file)
    if listen is not None and path is not None:
        raise UsageError("either a socket or an address to listen on")
    if listen is not None and token is None:
        raise UsageError(
            "on TCP a token is needed: everyone on this machine may connect, or on the network",
            hint="--token-file FILE, made by: openssl rand -hex 32 > FILE",
        )
    where = path or default_socket().with_name("functions.sock")
    # An exception out of a signal's handler could come anywhere, and be taken for a connection's.
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    listener = _listen_tcp(listen) if listen is not None else _listen_unix(where)
    server = Server(listener, token, over=over)
    try:
        name = listen or str(where)
        if sys.stderr.isatty():
            print(f"tegu: functions are served at {name}", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=_POLL)
    finally:
        listener.close()
        if listen is None:
            where.unlink(missing_ok=True)


def _token(path: Path) -> str:
    try:
        about = path.stat()
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {getattr(e, 'strerror', None) or 'it is no text'}") from e
    if stat.S_IMODE(about.st_mode) & 0o077:
        raise UsageError(f"{path}: others may read the token", hint=f"chmod 600 {path}")
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable():
        raise UsageError(f"{path}: a token has {_MIN_TOKEN} printable characters or more")
    return token


def _listen_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise UsageError(f"{address!a} is not HOST:PORT")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=512)
    except OSError as e:
        raise SandboxError(f"cannot listen on {address}: {e.strerror or e}") from e


def _listen_unix(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(512)
    except OSError as e:
        raise SandboxError(f"cannot listen on {path}: {e.strerror or e}") from e
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    if not path.is_socket():
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    else:
        raise SandboxError(f"functions are served at {path} already")
    finally:
        probe.close()
