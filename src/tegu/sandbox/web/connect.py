"""Connect RPC over HTTP/1.1 with JSON (connectrpc.com/docs/protocol): single calls, and streams.

The E2B clients speak it with what runs in a sandbox. Of the codecs only JSON is here; a request in
another one is refused as the protocol says (415).
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from tegu.errors import TeguError
from tegu.sandbox.web.fault import Fault, as_fault
from tegu.sandbox.web.fields import Fields, from_json

__all__ = ["MAX_MESSAGE", "input_stream", "stream", "unary"]

MAX_MESSAGE = 16 * 2**20
"""Bytes of one message that is taken."""
_ENVELOPE = struct.Struct(">BI")
_END = 0x02
_COMPRESSED = 0x01
_MOST_SECONDS = 600

Unary = Callable[[web.Request, Fields], Awaitable[dict[str, Any]]]
Stream = Callable[[web.Request, Fields, float | None], AsyncIterator[dict[str, Any]]]
InputStream = Callable[[web.Request, AsyncIterator[Fields]], Awaitable[dict[str, Any]]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _says(error: TeguError) -> dict[str, Any]:
    fault = as_fault(error)
    message = fault.message + (f" ({fault.hint})" if fault.hint else "")
    return {"code": fault.code, "message": message}


def _timeout(request: web.Request) -> float | None:
    """Return the seconds that the client gives the call."""
    text = request.headers.get("Connect-Timeout-Ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Fault("invalid_argument", "Connect-Timeout-Ms is no number of milliseconds")
    return int(text) / 1000 if int(text) else None


def _check(request: web.Request, wanted: str) -> None:
    if request.content_type != wanted:
        raise web.HTTPUnsupportedMediaType(
            headers={"Accept-Post": wanted}, text=f"this is served as {wanted} only"
        )
    for name in ("Content-Encoding", "Connect-Content-Encoding"):
        if request.headers.get(name, "identity") != "identity":
            raise Fault("unimplemented", f"{name}: compressed messages are not taken")


def unary(call: Unary) -> Handler:
    """Return the handler of a call with one message each way."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            _check(request, "application/json")
            seconds = _timeout(request)
            body = Fields(from_json(await request.read(), "the message"))
            async with asyncio.timeout(seconds):
                answer = await call(request, body)
        except TimeoutError:
            late = Fault("deadline_exceeded", "it took longer than the call's own timeout")
            return web.json_response(_says(late), status=late.status)
        except (TeguError, OSError) as e:
            fault = as_fault(e)
            return web.json_response(_says(fault), status=fault.status)
        return web.json_response(answer)

    return handle


def _envelope(body: dict[str, Any], flags: int = 0) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    return _ENVELOPE.pack(flags, len(data)) + data


async def _messages(request: web.Request) -> AsyncIterator[Fields]:
    """Yield the messages of a request's stream. Raises Fault."""
    while True:
        try:
            head = await request.content.readexactly(_ENVELOPE.size)
        except asyncio.IncompleteReadError as e:
            if e.partial:
                raise Fault("invalid_argument", "the stream ends within a message") from e
            return
        flags, length = _ENVELOPE.unpack(head)
        if flags & _END:
            return
        if flags & _COMPRESSED:
            raise Fault("unimplemented", "compressed messages are not taken")
        if length > MAX_MESSAGE:
            raise Fault("resource_exhausted", f"a message is larger than {MAX_MESSAGE} bytes")
        try:
            data = await request.content.readexactly(length)
        except asyncio.IncompleteReadError as e:
            raise Fault("invalid_argument", "the stream ends within a message") from e
        yield Fields(from_json(data, "the message"))


async def _only(request: web.Request) -> Fields:
    found = [message async for message in _messages(request)]
    if len(found) != 1:
        raise Fault("invalid_argument", f"the call has {len(found)} messages, not one")
    return found[0]


def _respond() -> web.StreamResponse:
    return web.StreamResponse(headers={"Content-Type": "application/connect+json"})


async def _finish(
    request: web.Request, response: web.StreamResponse, error: TeguError | OSError | None
) -> web.StreamResponse:
    if not response.prepared:
        await response.prepare(request)
    end = {} if error is None else {"error": _says(as_fault(error))}
    await response.write(_envelope(end, _END))
    await response.write_eof()
    return response


def _pulse(request: web.Request) -> float:
    """Return after how many silent seconds a sign of life is wanted."""
    text = request.headers.get("Keepalive-Ping-Interval", "")
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 50
    return float(min(max(seconds, 1), _MOST_SECONDS))


def stream(call: Stream, *, deadline: bool) -> Handler:
    """Return the handler of a call that is answered by a stream.

    With `deadline` the client's timeout ends the stream here; else the call gets it and sees to it.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        response = _respond()
        error: TeguError | OSError | None = None
        try:
            _check(request, "application/connect+json")
            seconds = _timeout(request)
            async with asyncio.timeout(seconds if deadline else None):
                body = await _only(request)
                events = call(request, body, seconds)
                await _forward(request, response, events, _pulse(request))
        except TimeoutError:
            error = Fault("deadline_exceeded", "the stream reached the call's own timeout")
        except (ConnectionError, asyncio.CancelledError):
            raise  # nobody hears it
        except (TeguError, OSError) as e:
            error = e
        return await _finish(request, response, error)

    return handle


async def _forward(
    request: web.Request,
    response: web.StreamResponse,
    events: AsyncIterator[dict[str, Any]],
    pulse: float,
) -> None:
    """Send each event as it comes, and signs of life between."""
    iterator = aiter(events)
    pending: asyncio.Task[dict[str, Any]] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.ensure_future(anext(iterator))
            done, _ = await asyncio.wait({pending}, timeout=pulse if response.prepared else None)
            if not done:
                await response.write(_envelope(_KEEPALIVE[request.path.rpartition("/")[2]]))
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            pending = None
            if not response.prepared:
                await response.prepare(request)
            await response.write(_envelope(event))
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


_KEEPALIVE: dict[str, dict[str, Any]] = {
    "Start": {"event": {"keepalive": {}}},
    "Connect": {"event": {"keepalive": {}}},
    "WatchDir": {"keepalive": {}},
}


def input_stream(call: InputStream) -> Handler:
    """Return the handler of a call whose request is a stream and whose answer is one message."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = _respond()
        error: TeguError | OSError | None = None
        try:
            _check(request, "application/connect+json")
            async with asyncio.timeout(_timeout(request)):
                answer = await call(request, _messages(request))
            await response.prepare(request)
            await response.write(_envelope(answer))
        except TimeoutError:
            error = Fault("deadline_exceeded", "the stream reached the call's own timeout")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except (TeguError, OSError) as e:
            error = e
        return await _finish(request, response, error)

    return handle
