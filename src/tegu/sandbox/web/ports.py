"""Ports in sandboxes: HTTP requests and WebSockets sent on to what listens there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMsgType, web
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from tegu.sandbox.web.fault import Fault, closed
from tegu.sandbox.web.held import Held

__all__ = ["Ports"]

_HOP = frozenset(
    [
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "content-length"),
    ]
)
"""Headers of one hop (RFC 9110, 7.6.1)."""
_OURS = frozenset(["x-api-key", "x-access-token", "e2b-traffic-access-token", "e2b-sandbox-id"])
"""What opens the door is not for what is behind it."""
_CHUNK = 65536
_MAX_MESSAGE = 16 * 2**20


class _Connector(aiohttp.BaseConnector):
    """Connects to a port in a sandbox, as aiohttp's own connectors do to addresses."""

    def __init__(self, held: Held, port: int) -> None:
        super().__init__(force_close=True)
        self._held = held
        self._port = port

    async def _create_connection(
        self, req: object, traces: object, timeout: object
    ) -> ResponseHandler:
        link = await self._held.connect(self._port)
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: ResponseHandler(loop), sock=link)
        return protocol


class Ports:
    """Sends requests on."""

    def __init__(self) -> None:
        self._sockets: set[web.WebSocketResponse] = set()

    async def close(self, _: object) -> None:
        """End what is open."""
        for ws in list(self._sockets):
            await ws.close()

    async def forward(
        self,
        request: web.Request,
        held: Held,
        port: int,
        target: str,
        *,
        leave: frozenset[str] = frozenset(),
    ) -> web.StreamResponse:
        """Send a request on to `target` (path and query as they came) at a port. Raises Fault.

        The answer is passed back as it comes. Redirects are the client's, and so are cookies.
        Of its headers those of `leave` stay behind.
        """
        if not target.startswith("/"):
            raise Fault("invalid_argument", "the request's target is not a path")
        url = URL(f"http://127.0.0.1:{port}{target}", encoded=True)
        headers = _passed(request.headers, _HOP | _OURS | leave)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=None)
        async with aiohttp.ClientSession(
            connector=_Connector(held, port),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=timeout,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as session:
            try:
                if _is_websocket(request):
                    return await self._websocket(request, session, url, headers)
                return await _plain(request, session, url, headers)
            except aiohttp.ServerDisconnectedError as e:
                raise closed(held.id, port) from e
            except aiohttp.ClientError as e:
                raise Fault(
                    "unavailable", f"what listens at {port} speaks no HTTP: {e}", status=502
                ) from e

    async def _websocket(
        self,
        request: web.Request,
        session: aiohttp.ClientSession,
        url: URL,
        headers: CIMultiDict[str],
    ) -> web.StreamResponse:
        for name in [n for n in headers if n.lower().startswith("sec-websocket-")]:
            headers.popall(name, None)
        said = request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = tuple(p.strip() for p in said.split(",") if p.strip())
        async with session.ws_connect(
            url, headers=headers, protocols=protocols, autoping=False, max_msg_size=_MAX_MESSAGE
        ) as inner:
            chosen = (inner.protocol,) if inner.protocol else ()
            outer = web.WebSocketResponse(
                protocols=chosen, autoping=False, max_msg_size=_MAX_MESSAGE
            )
            await outer.prepare(request)
            self._sockets.add(outer)
            try:
                both = [
                    asyncio.ensure_future(_pump(inner, outer)),
                    asyncio.ensure_future(_pump(outer, inner)),
                ]
                _, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                for task in pending:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                await outer.close(code=inner.close_code or 1000)
            finally:
                self._sockets.discard(outer)
            return outer


def _passed(headers: Mapping[str, str], drop: frozenset[str]) -> CIMultiDict[str]:
    named = {
        name.strip().lower()
        for value in CIMultiDict(headers).getall("Connection", [])
        for name in value.split(",")
    }
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in drop and name.lower() not in named
    )


def _is_websocket(request: web.Request) -> bool:
    return (
        request.headers.get("Upgrade", "").lower() == "websocket"
        and "upgrade" in request.headers.get("Connection", "").lower()
    )


async def _plain(
    request: web.Request,
    session: aiohttp.ClientSession,
    url: URL,
    headers: CIMultiDict[str],
) -> web.StreamResponse:
    body = request.content if request.body_exists else None
    if "Content-Encoding" in headers:
        headers.popall("Content-Encoding")  # it was decoded on the way in
    elif body is not None and "Content-Length" in request.headers:
        headers["Content-Length"] = request.headers["Content-Length"]
    async with session.request(
        request.method, url, headers=headers, data=body, allow_redirects=False
    ) as answer:
        back = _passed(answer.headers, _HOP)
        if "Content-Length" in answer.headers:
            back["Content-Length"] = answer.headers["Content-Length"]
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=back)
        await response.prepare(request)
        try:
            async for data in answer.content.iter_chunked(_CHUNK):
                await response.write(data)
        except aiohttp.ClientError as e:
            if request.transport is not None:
                request.transport.abort()  # so that nobody takes a part for the whole
            raise ConnectionResetError("the sandbox broke off") from e
        await response.write_eof()
        return response


async def _pump(
    source: web.WebSocketResponse | ClientWebSocketResponse,
    target: web.WebSocketResponse | ClientWebSocketResponse,
) -> None:
    async for message in source:
        if message.type == WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await target.send_bytes(message.data)
        elif message.type == WSMsgType.PING:
            await target.ping(message.data)
        elif message.type == WSMsgType.PONG:
            await target.pong(message.data)
