"""What E2B's clients expect inside a sandbox: its processes, as a Connect RPC service.

Service `process.Process`, by its published names and fields. That a program ends when its `Start`
has run out of time, whoever still listens, is as they have it; that a client which went away can
connect again and misses nothing is ours (`program`).
"""

from __future__ import annotations

import base64
import signal
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tegu.sandbox.web import connect
from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.fields import Fields
from tegu.sandbox.web.gate import HELD
from tegu.sandbox.web.held import Held
from tegu.sandbox.web.listener import End
from tegu.sandbox.web.program import Program
from tegu.sandbox.web.tree import Tree
from tegu.sandbox.web.users import HOME, check_named_user

__all__ = ["routes"]

_SIGNALS = {
    "SIGNAL_SIGTERM": signal.SIGTERM,
    "SIGNAL_SIGKILL": signal.SIGKILL,
    "15": signal.SIGTERM,
    "9": signal.SIGKILL,
}
_OUTPUTS = {"stdout": "stdout", "stderr": "stderr", "terminal": "pty"}


def _selected(held: Held, message: Fields) -> Program:
    selector = message.message("process")
    if selector.has("pid"):
        return held.program(selector.whole("pid"))
    tag = selector.text("tag")
    for program in held.programs.values():
        if tag and program.tag == tag:
            return program
    raise Fault("not_found", f"there is no process with the tag {tag!r}")


def _size(message: Fields) -> tuple[int, int] | None:
    if not message.has("pty"):
        return None
    size = message.message("pty").message("size")
    return size.whole("rows") or 24, size.whole("cols") or 80


async def _start(
    request: web.Request, message: Fields, seconds: float | None
) -> AsyncIterator[dict[str, Any]]:
    held = request[HELD]
    check_named_user(request)
    config = message.message("process")
    program = await held.start_program(
        [config.text("cmd"), *config.texts("args")],
        env=config.table("envs"),
        cwd=Tree(held).resolve(config.text("cwd") or HOME, HOME),
        timeout=seconds,
        tag=message.text("tag") or None,
        stdin=message.flag("stdin", default=True),
        size=_size(message),
    )
    async for event in _events(held, program):
        yield event


async def _connect(
    request: web.Request, message: Fields, _: float | None
) -> AsyncIterator[dict[str, Any]]:
    held = request[HELD]
    async for event in _events(held, _selected(held, message)):
        yield event


async def _events(held: Held, program: Program) -> AsyncIterator[dict[str, Any]]:
    listener = program.listen()
    try:
        yield {"event": {"start": {"pid": program.pid}}}
        while not isinstance(item := await listener.next(), End):
            stream, data = item
            output = {_OUTPUTS[stream]: base64.b64encode(data).decode()}
            yield {"event": {"data": output}}
        yield {"event": {"end": await _end(held, program, item)}}
    finally:
        listener.close()


async def _end(held: Held, program: Program, end: End) -> dict[str, Any]:
    outcome = end.outcome
    if outcome is None or (outcome["timed_out"] and not program.timed_out):
        raise await held.verdict(end.error.message if end.error else "its time is over")
    if program.timed_out:
        raise Fault(
            "deadline_exceeded",
            f"process {program.pid} was killed at its timeout of {program.timeout:g} s",
        )
    number, code = outcome["signal"], outcome["code"]
    if number:
        name = signal.strsignal(number) or str(number)
        what = "it reached the sandbox's memory limit" if outcome["out_of_memory"] else ""
        status = f"signal: {name.lower()}"
        error = f"{status}: {what}" if what else status
        return {"exitCode": -1, "exited": False, "status": status, "error": error}
    status = f"exit status {code}"
    return {
        "exitCode": code,
        "exited": True,
        "status": status,
        **({"error": status} if code else {}),
    }


async def _list(request: web.Request, _: Fields) -> dict[str, Any]:
    return {
        "processes": [
            {
                "config": {"cmd": p.argv[0], "args": p.argv[1:], "envs": p.env, "cwd": p.cwd},
                "pid": p.pid,
                **({"tag": p.tag} if p.tag else {}),
            }
            for p in request[HELD].running()
        ]
    }


async def _send(program: Program, message: Fields) -> None:
    kind = "pty" if program.has_terminal else "stdin"
    if not message.has(kind) and program.running:
        other = "stdin" if kind == "pty" else "pty"
        raise Fault("invalid_argument", f"process {program.pid} takes {kind}, not {other}")
    await program.write(message.data(kind))


async def _send_input(request: web.Request, message: Fields) -> dict[str, Any]:
    await _send(_selected(request[HELD], message), message.message("input"))
    return {}


async def _stream_input(request: web.Request, messages: AsyncIterator[Fields]) -> dict[str, Any]:
    program: Program | None = None
    async for message in messages:
        if message.has("start"):
            program = _selected(request[HELD], message.message("start"))
        elif message.has("data"):
            if program is None:
                raise Fault("invalid_argument", "data comes before it was said for which process")
            await _send(program, message.message("data").message("input"))
    return {}


async def _close_stdin(request: web.Request, message: Fields) -> dict[str, Any]:
    await _selected(request[HELD], message).end_input()
    return {}


async def _send_signal(request: web.Request, message: Fields) -> dict[str, Any]:
    program = _selected(request[HELD], message)
    number = message.text("signal") if not message.has("signal") else _signal_name(message)
    found = _SIGNALS.get(number)
    if found is None:
        raise Fault("invalid_argument", f"signal: {number!r} is neither SIGTERM nor SIGKILL")
    # Killed with all that it left: what it started would else go on unseen.
    await program.signal(None if found == signal.SIGKILL else int(found))
    return {}


def _signal_name(message: Fields) -> str:
    try:
        return str(message.whole("signal"))
    except Fault:
        return message.text("signal")


async def _update(request: web.Request, message: Fields) -> dict[str, Any]:
    program, size = _selected(request[HELD], message), _size(message)
    if size is not None:
        program.resize(*size)
    return {}


def routes() -> list[web.RouteDef]:
    """Return the routes of the service."""
    methods = {
        "List": connect.unary(_list),
        "Start": connect.stream(_start, deadline=False),
        "Connect": connect.stream(_connect, deadline=True),
        "Update": connect.unary(_update),
        "SendInput": connect.unary(_send_input),
        "StreamInput": connect.input_stream(_stream_input),
        "SendSignal": connect.unary(_send_signal),
        "CloseStdin": connect.unary(_close_stdin),
    }
    return [web.post(f"/process.Process/{name}", handler) for name, handler in methods.items()]
