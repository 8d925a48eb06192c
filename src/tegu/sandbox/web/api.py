"""Our own API, under /v1: sandboxes, programs in them, files; JSON, and WebSocket for streams."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from tegu import __version__
from tegu.errors import UsageError
from tegu.sandbox.client import box_spec
from tegu.sandbox.web import transfer
from tegu.sandbox.web.fault import Fault, gone
from tegu.sandbox.web.held import Held, Wanted
from tegu.sandbox.web.hub import Hub
from tegu.sandbox.web.listener import End
from tegu.sandbox.web.openapi import describe
from tegu.sandbox.web.operation import Call
from tegu.sandbox.web.ports import Ports
from tegu.sandbox.web.program import Program, signal_number
from tegu.sandbox.web.reach import permitted
from tegu.sandbox.web.sockets import serve_process, serve_watch
from tegu.sandbox.web.table import operations
from tegu.sandbox.web.tree import Info, Tree
from tegu.sandbox.web.usage import sample
from tegu.sandbox.web.users import HOME
from tegu.sandbox.web.watch import Watcher

__all__ = ["Api"]

_MAX_OUTPUT = 16 * 2**20


class Api:
    """The handlers of our own API; `table` says what each is for."""

    def __init__(self, hub: Hub, ports: Ports) -> None:
        self._hub = hub
        self._ports = ports

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        found = [web.route(o.method, f"/v1{o.path}", o.handle) for o in operations(self)]
        return [*found, web.get("/openapi.json", self._description)]

    async def _description(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(describe(operations(self), __version__))

    # Sandboxes.

    async def health(self, _: Call) -> web.StreamResponse:
        held = self._hub.all()
        return web.json_response(
            {
                "version": __version__,
                "sandboxes": len(held),
                "paused": sum(h.paused for h in held),
                "started": self._hub.started.total(),
                "templates": sorted(self._hub.rules.templates),
            }
        )

    async def create(self, call: Call) -> web.StreamResponse:
        said, rules = call.body, self._hub.rules
        name = said.get("template", "base")
        base = rules.box_of(name)
        limits = base.limits
        try:
            box = box_spec(
                base.template,
                kind=said.get("class", base.kind),
                memory=said.get("memory", limits.memory),
                cpus=said.get("cpus", limits.cpus),
                pids=said.get("pids", limits.pids),
                files=said.get("files", limits.files),
                disk=said.get("disk", limits.disk),
                read_only=said.get("read_only", base.read_only),
                hostname=said.get("hostname", base.hostname),
                network=said.get("network", base.network),
            )
            box = replace(box, network=permitted(base.network, box.network))
        except UsageError as e:
            raise Fault("invalid_argument", e.message, hint=e.hint) from e
        rules.check(box)
        held = await self._hub.create(
            Wanted(
                template=name,
                box=box,
                timeout=rules.timeout(said.get("timeout", min(300.0, rules.max_timeout))),
                pause=said.get("on_timeout") == "pause",
                wake=said.get("wake", False),
                env=said.get("env", {}),
                metadata=said.get("metadata", {}),
            )
        )
        return web.json_response({**_sandbox(held), "token": held.token}, status=201)

    async def list(self, call: Call) -> web.StreamResponse:
        limit, after = call.query.get("limit", 100), call.query.get("after")
        if not 0 < limit <= 1000:
            raise Fault("invalid_argument", "limit: it is not between 1 and 1000")
        found = self._hub.all()
        if after is not None:
            created, _, name = after.partition("-")
            try:
                last = (float(created), name)
            except ValueError:
                raise Fault("invalid_argument", "after: it is not a page's next") from None
            found = [h for h in found if (h.created, h.id) > last]
        page = found[:limit]
        more = f"{page[-1].created!r}-{page[-1].id}" if len(found) > limit else None
        return web.json_response({"sandboxes": [_sandbox(h) for h in page], "next": more})

    def _held(self, call: Call) -> Held:
        return self._hub.get(call.path("sandbox"))

    async def _awake(self, call: Call) -> Held:
        held = self._held(call)
        await held.awake()
        return held

    async def get(self, call: Call) -> web.StreamResponse:
        return web.json_response(_sandbox(self._held(call)))

    async def kill(self, call: Call) -> web.StreamResponse:
        await self._held(call).kill()
        return web.Response(status=204)

    async def timeout(self, call: Call) -> web.StreamResponse:
        held = self._held(call)
        await held.set_timeout(self._hub.rules.timeout(call.body["seconds"]))
        return web.json_response(_sandbox(held))

    async def pause(self, call: Call) -> web.StreamResponse:
        held = self._held(call)
        await held.pause()
        return web.json_response(_sandbox(held))

    async def resume(self, call: Call) -> web.StreamResponse:
        held = self._held(call)
        await held.resume(self._hub.rules.timeout(call.body["seconds"]))
        return web.json_response(_sandbox(held))

    async def metrics(self, call: Call) -> web.StreamResponse:
        held = self._held(call)
        if not held.paused:
            await sample(held)
        return web.json_response([vars(s) for s in held.samples])

    async def log(self, call: Call) -> web.StreamResponse:
        lines = [{"time": when, "text": text} for when, text in self._held(call).log]
        return web.json_response(lines)

    async def port(self, call: Call) -> web.StreamResponse:
        held = await self._awake(call)
        number = call.path("port")
        if not (number.isascii() and number.isdigit() and 0 < int(number[:6]) < 65536):
            raise Fault("invalid_argument", f"{number[:20]!r} is no port")
        inside = call.request.raw_path.split("/", 6)[6:]
        return await self._ports.forward(
            call.request,
            held,
            int(number),
            "/" + "".join(inside),
            leave=frozenset(["authorization"]),
        )

    # Programs.

    async def _begin(self, call: Call, *, stdin: bool) -> tuple[Held, Program]:
        held, said = await self._awake(call), call.body
        command = said["command"]
        size = said.get("terminal")
        program = await held.start_program(
            ["/bin/sh", "-c", command] if isinstance(command, str) else command,
            env=said.get("env"),
            cwd=Tree(held).resolve(said.get("cwd", "/"), HOME),
            timeout=said.get("timeout"),
            tag=said.get("tag"),
            stdin=stdin,
            size=None if size is None else _size(size),
        )
        return held, program

    async def run(self, call: Call) -> web.StreamResponse:
        most = call.body.get("max_output", _MAX_OUTPUT)
        if not 0 <= most <= _MAX_OUTPUT:
            raise Fault("invalid_argument", f"max_output: it is not between 0 and {_MAX_OUTPUT}")
        data = _data(call.body)
        held, program = await self._begin(call, stdin=bool(data))
        kept = {"stdout": bytearray(), "stderr": bytearray()}
        truncated = False
        listener = program.listen()
        feeding = asyncio.ensure_future(_feed(program, data)) if data else None
        try:
            while not isinstance(item := await listener.next(), End):
                stream, piece = item
                room = most - len(kept[stream])
                kept[stream] += piece[:room]
                truncated = truncated or len(piece) > room
        except asyncio.CancelledError:
            await program.signal(None)
            raise
        finally:
            listener.close()
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
        result = {**await _outcome(held, program, item), "truncated": truncated}
        for name, whole in kept.items():
            result |= _as_text(name, bytes(whole))
        return web.json_response(result)

    async def start(self, call: Call) -> web.StreamResponse:
        _, program = await self._begin(call, stdin=call.body.get("stdin", True))
        return web.json_response(_shown(program), status=201)

    async def processes(self, call: Call) -> web.StreamResponse:
        return web.json_response([_shown(p) for p in self._held(call).programs.values()])

    def _program(self, call: Call) -> Program:
        pid = call.path("pid")
        if not (pid.isascii() and pid.isdigit() and len(pid) < 11):
            raise Fault("invalid_argument", f"{pid!r} is no process id")
        return self._held(call).program(int(pid))

    async def process(self, call: Call) -> web.StreamResponse:
        return web.json_response(_shown(self._program(call)))

    async def attach(self, call: Call) -> web.StreamResponse:
        held = await self._awake(call)
        return await serve_process(call.request, self._program(call), lambda: _over(held, call))

    async def input(self, call: Call) -> web.StreamResponse:
        await self._awake(call)
        program = self._program(call)
        async for data in transfer.take_body(call.request):
            await program.write(data)
        if call.query.get("end"):
            await program.end_input()
        return web.Response(status=204)

    async def signal(self, call: Call) -> web.StreamResponse:
        name = call.body["signal"]
        await self._program(call).signal(signal_number(name))
        return web.Response(status=204)

    async def resize(self, call: Call) -> web.StreamResponse:
        self._program(call).resize(*_size(call.body))
        return web.Response(status=204)

    # Files.

    async def _tree(self, call: Call, path: str) -> tuple[Tree, str]:
        tree = Tree(await self._awake(call))
        return tree, tree.resolve(path, HOME)

    async def read(self, call: Call) -> web.StreamResponse:
        _, path = await self._tree(call, call.query["path"])
        return await transfer.send_file(call.request, self._held(call), path)

    async def write(self, call: Call) -> web.StreamResponse:
        tree, path = await self._tree(call, call.query["path"])
        return web.json_response(_file(await tree.write(path, transfer.take_body(call.request))))

    async def files(self, call: Call) -> web.StreamResponse:
        tree, path = await self._tree(call, call.query["path"])
        found = await tree.entries(path, max(1, call.query.get("depth", 1)))
        return web.json_response([_file(i) for i in found])

    async def stat(self, call: Call) -> web.StreamResponse:
        tree, path = await self._tree(call, call.query["path"])
        return web.json_response(_file(await tree.stat(path)))

    async def remove(self, call: Call) -> web.StreamResponse:
        tree, path = await self._tree(call, call.query["path"])
        await tree.remove(path)
        return web.Response(status=204)

    async def mkdir(self, call: Call) -> web.StreamResponse:
        tree, path = await self._tree(call, call.body["path"])
        await tree.make_directories(path)
        return web.json_response(_file(await tree.stat(path)))

    async def move(self, call: Call) -> web.StreamResponse:
        tree, source = await self._tree(call, call.body["from"])
        target = tree.resolve(call.body["to"], HOME)
        await tree.move(source, target)
        return web.json_response(_file(await tree.stat(target)))

    async def watch(self, call: Call) -> web.StreamResponse:
        _, path = await self._tree(call, call.query["path"])
        recursive = call.query.get("recursive", False)
        watcher = Watcher(self._held(call), path, recursive=recursive, with_info=False)
        await watcher.start()
        return await serve_watch(call.request, watcher)


def _size(said: Mapping[str, Any]) -> tuple[int, int]:
    rows, columns = said.get("rows", 24), said.get("columns", 80)
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Fault("invalid_argument", "terminal: rows and columns are whole numbers")
    return rows, columns


def _data(said: Mapping[str, Any]) -> bytes:
    if "stdin" in said and "stdin_base64" in said:
        raise Fault("invalid_argument", "stdin and stdin_base64: one of them")
    if "stdin" in said:
        return str(said["stdin"]).encode(errors="surrogateescape")
    try:
        return base64.b64decode(said.get("stdin_base64", ""), validate=True)
    except (binascii.Error, ValueError):
        raise Fault("invalid_argument", "stdin_base64: it is not base64") from None


async def _feed(program: Program, data: bytes) -> None:
    try:
        await program.write(data)
        await program.end_input()
    except Fault:
        return  # it does not want to hear more


def _as_text(name: str, data: bytes) -> dict[str, str]:
    """Return output as text where it is, else as base64 under a name that says so."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


async def _outcome(held: Held, program: Program, end: End) -> dict[str, Any]:
    outcome = end.outcome
    if outcome is None or (outcome["timed_out"] and not program.timed_out):
        raise await held.verdict(end.error.message if end.error else "its time is over")
    return {"exit_code": outcome["code"], **{k: v for k, v in outcome.items() if k != "code"}}


async def _over(held: Held, call: Call) -> dict[str, Any]:
    """Return how an attached program ended. Raises Fault when the sandbox did."""
    program = held.programs.get(int(call.path("pid")))
    if program is None or program.end is None:
        raise gone(held.id, held.ended or "it has ended")
    return await _outcome(held, program, program.end)


def _sandbox(held: Held) -> dict[str, Any]:
    box = held.wanted.box
    return {
        "id": held.id,
        "state": "paused" if held.paused else "running",
        "template": held.wanted.template,
        "class": box.kind,
        "created": held.created,
        "ends": held.end_at,
        "on_timeout": "pause" if held.wanted.pause else "kill",
        "wake": held.wanted.wake,
        "metadata": dict(held.wanted.metadata),
        "memory": box.limits.memory,
        "cpus": box.limits.cpus,
        "pids": box.limits.pids,
        "files": box.limits.files,
        "disk": box.limits.disk,
        "read_only": box.read_only,
        "network": box.network if isinstance(box.network, str) else list(box.network),
    }


def _shown(program: Program) -> dict[str, Any]:
    outcome = program.end.outcome if program.end is not None else None
    return {
        "pid": program.pid,
        "command": program.argv,
        "cwd": program.cwd,
        "tag": program.tag,
        "state": "running" if program.running else "ended",
        "exit_code": outcome["code"] if outcome else None,
        "lost": program.lost,
    }


def _file(info: Info) -> dict[str, Any]:
    return {**vars(info)}
