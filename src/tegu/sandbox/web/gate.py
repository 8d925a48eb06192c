"""Who may ask for what, and for which sandbox; and errors as answers.

A token of the service may do all. A sandbox's own token opens that sandbox alone, a signature made
with it one file of it. On the UNIX socket no token is asked for: the kernel says who is there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from tegu.errors import TeguError
from tegu.sandbox.web.fault import Fault, as_fault, gone
from tegu.sandbox.web.held import Held
from tegu.sandbox.web.hub import Hub
from tegu.sandbox.web.ports import Ports

__all__ = ["ENVD_PORT", "HELD", "Gate", "error_body"]

HELD = "held"
"""Under which a request knows its sandbox."""
ENVD_PORT = 49983
"""The port on which E2B's clients expect a sandbox's processes and files."""
_INSIDE = ("/process.Process/", "/filesystem.Filesystem/")
_INSIDE_TOO = ("/files", "/init", "/envs")
_EITHER = ("/health", "/metrics")
_OPEN = ("/health", "/openapi.json")
_HOST = re.compile(r"([0-9]{1,5})-([0-9a-z]{1,40})\.")
_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_body(fault: Fault) -> dict[str, object]:
    """Return an error as both APIs tell it: `code` is the status, `error_code` names its kind."""
    body: dict[str, object] = {
        "code": fault.status,
        "message": fault.message,
        "error_code": fault.code,
    }
    if fault.hint:
        body["hint"] = fault.hint
    return body


def _answer(fault: Fault) -> web.Response:
    # These are no passing troubles: E2B's clients would ask again, and wait.
    headers = {"Should-Retry": "false"} if fault.status in (502, 503, 504) else {}
    if fault.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(error_body(fault), status=fault.status, headers=headers)


class Gate:
    """The middlewares of the service."""

    def __init__(self, hub: Hub, ports: Ports, tokens: Iterable[str]) -> None:
        self._hub = hub
        self._ports = ports
        self._digests = [hashlib.sha256(t.encode()).digest() for t in tokens]

    @web.middleware
    async def errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer every error as JSON; one of ours (a bug) without its insides."""
        try:
            return await handler(request)
        except (TeguError, TimeoutError) as e:
            return _answer(as_fault(e))
        except ConnectionError:
            raise
        except OSError as e:
            return _answer(as_fault(e))
        except web.HTTPException as e:
            if e.status < 400:
                raise
            body = {"code": e.status, "message": e.text or e.reason, "error_code": "http"}
            response = web.json_response(body, status=e.status)
            for name in ("Allow", "Accept-Post"):
                if name in e.headers:
                    response.headers[name] = e.headers[name]
            return response
        except Exception:  # noqa: BLE001 - a bug is told in the log, not to the client
            _log.exception("%s %s", request.method, request.path)
            return _answer(Fault("internal", "a fault of the service; its log has more"))

    @web.middleware
    async def access(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request through, with its sandbox where it is for one."""
        path = request.path
        port, name = _named(request)
        if name and port != ENVD_PORT:
            held = self._hub.find(name)
            if held is None:
                raise self._hub.gone(name)
            self._check_port(request, held)
            await self._see_awake(held)
            return await self._ports.forward(request, held, port, request.raw_path)
        inside = path.startswith(_INSIDE) or path in _INSIDE_TOO
        if inside or (name and path in _EITHER):
            await self._enter(request, name)
        elif path not in _OPEN and not self._may_all(request):
            raise Fault(
                "unauthenticated",
                "a token of this service is needed",
                hint="send it as 'Authorization: Bearer TOKEN' or 'X-API-Key: TOKEN'",
            )
        return await handler(request)

    async def _enter(self, request: web.Request, name: str) -> None:
        held = self._hub.find(name)
        if not name:
            held = self._by_signature(request)
            if held is None:
                raise Fault("unauthenticated", "the request names no sandbox (E2b-Sandbox-Id)")
        if held is None:
            raise self._hub.gone(name)
        if request.path != "/health" and not (
            _is(request.headers.get("X-Access-Token"), held.token)
            or _signed(request, held)
            or self._may_all(request)
        ):
            raise Fault("unauthenticated", "the sandbox's access token is needed (X-Access-Token)")
        await self._see_awake(held, wake=request.path != "/health")
        request[HELD] = held

    def _check_port(self, request: web.Request, held: Held) -> None:
        said = request.headers.get("E2b-Traffic-Access-Token")
        own = request.headers.get("X-Access-Token")
        # Not Authorization: that is for what listens there.
        if not (
            _is(said, held.port_token)
            or _is(own, held.token)
            or _is_local(request)
            or self._knows(request.headers.get("X-API-Key"))
        ):
            raise Fault(
                "unauthenticated",
                "a token is needed for the ports of this sandbox",
                hint="send its traffic access token as E2b-Traffic-Access-Token",
            )

    @staticmethod
    async def _see_awake(held: Held, *, wake: bool = True) -> None:
        if held.paused and not (wake and held.wanted.wake):
            raise gone(held.id, "it is paused; resume it (Sandbox.connect)")
        await held.awake()

    def _by_signature(self, request: web.Request) -> Held | None:
        """Return the sandbox whose token made a file's URL, where the URL alone does not say."""
        return next((h for h in self._hub.all() if _signed(request, h)), None)

    def _may_all(self, request: web.Request) -> bool:
        if _is_local(request):
            return True
        kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
        said = bearer if kind.lower() == "bearer" else None
        return self._knows(request.headers.get("X-API-Key")) or self._knows(said)

    def _knows(self, token: str | None) -> bool:
        if not token:
            return False
        digest = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _named(request: web.Request) -> tuple[int, str]:
    """Return the port and the sandbox that a request is for, by header or host name."""
    name = request.headers.get("E2b-Sandbox-Id", "")
    port = request.headers.get("E2b-Sandbox-Port", str(ENVD_PORT))
    if not name:
        found = _HOST.match(request.host.lower())
        if found is None:
            return ENVD_PORT, ""
        port, name = found[1], found[2]
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise Fault("invalid_argument", "E2b-Sandbox-Port is no port")
    # Clients of old append a part of their own to the id.
    return int(port), name.partition("-")[0]


def _is(said: str | None, token: str) -> bool:
    return said is not None and hmac.compare_digest(
        said.encode(errors="surrogateescape"), token.encode()
    )


def _signed(request: web.Request, held: Held) -> bool:
    """Whether the URL of a file carries a signature: v1_ and the SHA-256, in base64 without
    padding, of path:operation:user:token, with :expiration (seconds since 1970) if it has one."""
    query = request.query
    signature = query.get("signature")
    if request.path != "/files" or signature is None:
        return False
    operation = "read" if request.method in ("GET", "HEAD") else "write"
    words = [query.get("path", ""), operation, query.get("username", ""), held.token]
    until = query.get("signature_expiration")
    if until is not None:
        if not (until.isascii() and until.isdigit() and len(until) < 16):
            return False
        if int(until) < time.time():
            return False
        words.append(until)
    digest = hashlib.sha256(":".join(words).encode(errors="surrogateescape")).digest()
    return _is(signature, "v1_" + base64.b64encode(digest).rstrip(b"=").decode())


def _is_local(request: web.Request) -> bool:
    """Whether it came over the UNIX socket, from our own user or root (SO_PEERCRED, unix(7))."""
    link = request.transport.get_extra_info("socket") if request.transport else None
    if link is None or link.family != socket.AF_UNIX:
        return False
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", data)
    return uid in (0, os.geteuid())
