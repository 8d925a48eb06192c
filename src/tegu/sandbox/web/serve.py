"""The service as a process: where it listens, who may, and its end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from tegu.errors import SandboxError, UsageError
from tegu.sandbox.web import api, envd, envd_files, transfer
from tegu.sandbox.web.connect import MAX_MESSAGE
from tegu.sandbox.web.control import Control
from tegu.sandbox.web.gate import Gate
from tegu.sandbox.web.hub import Hub, Rules
from tegu.sandbox.web.ports import Ports
from tegu.sandbox.wire import default_socket

__all__ = [
    "Address",
    "Settings",
    "check",
    "make_app",
    "parse_address",
    "read_tokens",
    "serve",
]

_LOW = 8
"""Characters of a token at least."""


@dataclass(frozen=True)
class Address:
    """Where to listen: `path` of a UNIX socket, or host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Settings:
    """All that the service is told."""

    addresses: Sequence[Address]
    rules: Rules = field(default_factory=Rules)
    tokens: Sequence[str] = ()
    certificate: Path | None = None
    key: Path | None = None
    domain: str | None = None
    supervisor: Path | None = None
    """The supervisor's socket, if it is not the usual one."""


def parse_address(text: str, supervisor: Path | None = None) -> Address:
    """Read `unix:/PATH`, `HOST:PORT` or `:PORT` (which is 127.0.0.1). Raises UsageError.

    `unix` alone is a socket beside the supervisor's own.
    """
    if text == "unix":
        return Address(path=(supervisor or default_socket()).with_name("sandbox-http.sock"))
    if text.startswith("unix:") or text.startswith("/"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute() or len(os.fsencode(path)) > 100:
            raise UsageError(
                f"--http: {text}: the path of a socket is absolute and at most 100 bytes"
            )
        return Address(path=path)
    host, mark, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not mark or not (port.isascii() and port.isdigit() and int(port[:6]) < 65536):
        raise UsageError(
            f"--http: {text!r} is no address", hint="write unix:/PATH, HOST:PORT or :PORT"
        )
    return Address(host=host or "127.0.0.1", port=int(port))


def read_tokens(path: Path) -> list[str]:
    """Return the tokens of a file, one on each line, with # before what is none.

    Raises UsageError when others may read it, or a token is too short to be one.
    """
    try:
        with path.open(encoding="utf-8") as f:
            if stat.S_IMODE(os.fstat(f.fileno()).st_mode) & 0o077:
                raise UsageError(f"{path}: others may read it", hint=f"chmod 600 {path}")
            lines = [line.strip() for line in f.read(2**20).splitlines()]
    except FileNotFoundError as e:
        hint = f"(umask 077; echo e2b_$(openssl rand -hex 20) > {path})"
        raise UsageError(
            f"{path}: there is no such file of tokens", hint=f"make one: {hint}"
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {getattr(e, 'strerror', None) or 'it is no text'}") from e
    tokens = [line for line in lines if line and not line.startswith("#")]
    for i, token in enumerate(tokens, 1):
        if len(token) < _LOW or not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(
                f"{path}: token {i} is no token: at least {_LOW} letters and digits, no blanks"
            )
    if not tokens:
        raise UsageError(f"{path}: there is no token in it")
    return tokens


def check(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS settings, if there are to be any. Raises UsageError: TCP needs a token."""
    tcp = [a for a in settings.addresses if a.path is None]
    if tcp and not settings.tokens:
        raise UsageError(
            f"--http {tcp[0]}: TCP is not served without a token",
            hint="say --token-file FILE, or listen on a UNIX socket: --http unix:/PATH",
        )
    if (settings.certificate is None) != (settings.key is None):
        raise UsageError("--tls-cert and --tls-key belong together")
    if settings.certificate is None or settings.key is None:
        return None
    for path in (settings.certificate, settings.key):
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as e:
        raise UsageError(
            f"{settings.certificate}, {settings.key}: no certificate and its key: "
            f"{getattr(e, 'reason', None) or e}"
        ) from e
    return context


def make_app(hub: Hub, tokens: Sequence[str], domain: str | None) -> web.Application:
    """Return the service's handlers."""
    ports = Ports()
    gate = Gate(hub, ports, tokens)
    app = web.Application(middlewares=[gate.errors, gate.access], client_max_size=2 * MAX_MESSAGE)
    app.on_cleanup.append(ports.close)
    app.add_routes(Control(hub, domain).routes())
    app.add_routes(envd.routes())
    app.add_routes(envd_files.routes())
    app.add_routes(transfer.routes())
    app.add_routes(api.Api(hub, ports).routes())
    return app


def _listen_unix(path: Path) -> tuple[socket.socket, int]:
    """Return a listening socket that only its owner may reach, and the lock on its place."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise SandboxError(f"cannot listen on {path}: {e.strerror}") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(lock)
        raise SandboxError(f"another service listens on {path} already") from e
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        if path.exists() and not path.is_socket():
            raise SandboxError(f"cannot listen on {path}: it is there, and no socket")
        with suppress(FileNotFoundError):
            path.unlink()
        listener.bind(str(path))
    except BaseException as e:
        listener.close()
        os.close(lock)
        if isinstance(e, OSError):
            raise SandboxError(f"cannot listen on {path}: {e.strerror}") from e
        raise
    finally:
        os.umask(before)
    return listener, lock


async def serve(settings: Settings, ready: Callable[[list[str]], None]) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is told the URLs. Raises TeguError."""
    tls = check(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hub = Hub(settings.rules, settings.supervisor)
    # A client that went away ends its call; keep-alive connections do not hold the end up.
    runner = web.AppRunner(
        make_app(hub, settings.tokens, settings.domain),
        handler_cancellation=True,
        access_log=logging.getLogger("tegu.sandbox.access"),
        shutdown_timeout=2.0,
    )
    locks: list[tuple[Path, int]] = []
    try:
        await hub.begin()
        await runner.setup()
        urls = [await _listen(runner, a, tls, locks) for a in settings.addresses]
        ready(urls)
        await stop.wait()
    finally:
        await hub.close()
        await runner.cleanup()
        for path, lock in locks:
            path.unlink(missing_ok=True)
            os.close(lock)


async def _listen(
    runner: web.AppRunner,
    address: Address,
    tls: ssl.SSLContext | None,
    locks: list[tuple[Path, int]],
) -> str:
    """Listen; returns the URL."""
    if address.path is not None:
        listener, lock = _listen_unix(address.path)
        locks.append((address.path, lock))
        await web.SockSite(runner, listener).start()
        return f"unix:{address.path}"
    try:
        site = web.TCPSite(runner, address.host, address.port, ssl_context=tls)
        await site.start()
    except OSError as e:
        raise SandboxError(f"cannot listen on {address}: {e.strerror or e}") from e
    server = site._server
    port = server.sockets[0].getsockname()[1] if server else address.port  # type: ignore[attr-defined]
    shown = Address(host=address.host, port=port)
    return f"{'https' if tls else 'http'}://{shown}"
