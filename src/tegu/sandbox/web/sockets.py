"""Streams of our own API over WebSocket (RFC 6455)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, web

from tegu.errors import TeguError
from tegu.sandbox.web.fault import Fault, as_fault
from tegu.sandbox.web.fields import Field, read
from tegu.sandbox.web.gate import error_body
from tegu.sandbox.web.listener import End
from tegu.sandbox.web.program import Program, signal_number
from tegu.sandbox.web.watch import Watcher

__all__ = ["PROCESS_PROTOCOL", "WATCH_PROTOCOL", "serve_process", "serve_watch"]

PROCESS_PROTOCOL = (
    "Binary messages are data: their first byte is 0 for stdin (or a terminal's input), 1 for "
    "stdout (or a terminal's output), 2 for stderr. Text messages are JSON. From the service: "
    '{"started": PID} first; {"ended": RESULT} or {"error": ERROR} last. To it: '
    '{"end_stdin": true}, {"signal": "TERM"}, {"rows": 24, "columns": 80}. '
    "Going away does not end the program: attach again."
)
WATCH_PROTOCOL = (
    'Text messages: {"watching": PATH} first, then {"name": NAME, "kind": KIND}, where KIND is '
    "create, write, remove, rename (away) or chmod."
)
_CHANNELS = {"stdout": b"\x01", "terminal": b"\x01", "stderr": b"\x02"}
_PULSE = 30.0
_MAX_MESSAGE = 2**20
_CONTROL = (
    Field("end_stdin", "flag", "End its stdin."),
    Field("signal", "text or whole", "Send a signal."),
    Field("rows", "whole", "The terminal's rows."),
    Field("columns", "whole", "The terminal's columns."),
)


def _socket() -> web.WebSocketResponse:
    return web.WebSocketResponse(heartbeat=_PULSE, max_msg_size=_MAX_MESSAGE)


async def serve_process(
    request: web.Request, program: Program, over: Callable[[], Awaitable[dict[str, Any]]]
) -> web.StreamResponse:
    """Attach a client to a program until it ends or the client goes; `over` says how it ended."""
    ws = _socket()
    await ws.prepare(request)
    listener = program.listen()
    hearing = asyncio.ensure_future(_obey(ws, program))
    try:
        await ws.send_str(json.dumps({"started": program.pid}))
        while not hearing.done():
            telling = asyncio.ensure_future(listener.next())
            await asyncio.wait({hearing, telling}, return_when=asyncio.FIRST_COMPLETED)
            if not telling.done():
                telling.cancel()
                break
            item = telling.result()
            if isinstance(item, End):
                await ws.send_str(await _last(over))
                break
            stream, data = item
            await ws.send_bytes(_CHANNELS[stream] + data)
        await ws.close()
    except ConnectionError:
        return ws  # it has gone; the program goes on
    finally:
        listener.close()
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
    return ws


async def _last(over: Callable[[], Awaitable[dict[str, Any]]]) -> str:
    try:
        return json.dumps({"ended": await over()})
    except TeguError as e:
        return json.dumps({"error": error_body(as_fault(e))})


async def _obey(ws: web.WebSocketResponse, program: Program) -> None:
    async for message in ws:
        try:
            if message.type == WSMsgType.BINARY:
                if message.data[:1] != b"\0":
                    raise Fault("invalid_argument", "data's first byte is not 0 (stdin)")
                await program.write(message.data[1:])
            elif message.type == WSMsgType.TEXT:
                await _control(program, message.data)
        except TeguError as e:
            await ws.send_str(json.dumps({"refused": error_body(as_fault(e))}))


async def _control(program: Program, text: str) -> None:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Fault("invalid_argument", f"the message is no JSON: {e}") from None
    said = read(body, _CONTROL, what="the message")
    if said.get("end_stdin"):
        await program.end_input()
    if "signal" in said:
        await program.signal(signal_number(said["signal"]))
    if "rows" in said or "columns" in said:
        program.resize(said.get("rows", 24), said.get("columns", 80))


async def serve_watch(request: web.Request, watcher: Watcher) -> web.StreamResponse:
    """Tell a client of changes until it goes, or there is nothing to watch any more."""
    ws = _socket()
    try:
        await ws.prepare(request)
        await ws.send_str(json.dumps({"watching": request.query["path"]}))
        going = asyncio.ensure_future(_until_closed(ws))
        try:
            while not going.done():
                telling = asyncio.ensure_future(watcher.next())
                await asyncio.wait({going, telling}, return_when=asyncio.FIRST_COMPLETED)
                if not telling.done():
                    telling.cancel()
                    break
                change = telling.result()
                await ws.send_str(json.dumps({"name": change.name, "kind": change.kind}))
        except TeguError as e:
            await ws.send_str(json.dumps({"error": error_body(as_fault(e))}))
        finally:
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)
        with suppress(ConnectionError):
            await ws.close()
    finally:
        watcher.close()
    return ws


async def _until_closed(ws: web.WebSocketResponse) -> None:
    async for _ in ws:
        pass
