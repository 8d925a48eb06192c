"""E2B's control plane: sandboxes made, found, paused and ended, as its clients ask for it (REST).

What is asked for and cannot be given is refused by name; what these sandboxes never have
(snapshots, volumes, secrets) answers 501.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
from collections import OrderedDict
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tegu.errors import UnsupportedError
from tegu.sandbox.spec import Limits
from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.fields import Field, from_json, read
from tegu.sandbox.web.held import Held, Wanted
from tegu.sandbox.web.hub import Hub
from tegu.sandbox.web.listing import metadata, page, when, whole
from tegu.sandbox.web.reach import from_e2b, permitted, to_e2b
from tegu.sandbox.web.usage import Sample, sample

__all__ = ["ENVD_VERSION", "Control"]

ENVD_VERSION = "0.6.4"
"""What its clients are told to expect inside a sandbox: file metadata, entries in watch events."""
_DEFAULT_TIMEOUT = 300.0
_REMEMBERED_KEYS = 1000

_NEW = (
    Field("templateID", "text", "The template's name.", required=True),
    Field("timeout", "number", "Seconds that it lives."),
    Field("autoPause", "flag", "Pause it when its time is over."),
    Field("autoPauseMemory", "flag", "Keep its memory then."),
    Field("autoResume", "object", "Resume it when it is called."),
    Field("allow_internet_access", "flag", "Whether it may use a network."),
    Field("network", "object", "What it may reach."),
    Field("metadata", "table", "What its owner notes about it."),
    Field("envVars", "table", "Variables of all its programs."),
    Field("secure", "flag", "Always so."),
)
_NEVER = {
    "iam": "workload identities",
    "mcp": "an MCP gateway: start one with commands.run",
    "volumeMounts": "volumes",
}
_TIMEOUT = (Field("timeout", "number", "Seconds from now.", required=True),)
_REFRESH = (Field("duration", "number", "Seconds more."),)
_PAUSE = (
    Field("memory", "flag", "Keep its memory."),
    Field("requireHealthyGuest", "flag", "Always so."),
)
_CONNECT = (
    Field("timeout", "number", "Seconds from now."),
    Field("memory", "flag", "Resume with its memory."),
    Field("autoPause", "flag", "Pause it when its time is over."),
)


def _time(seconds: float) -> str:
    when = datetime.fromtimestamp(min(seconds, 253402300799.0), UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_NO_END = 253402300799.0
"""The last second of the year 9999, for what has no end."""


class Control:
    """The handlers of the control plane."""

    def __init__(self, hub: Hub, domain: str | None) -> None:
        self._hub = hub
        self._domain = domain
        self._keys: OrderedDict[str, tuple[bytes, asyncio.Future[str]]] = OrderedDict()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        one = "/sandboxes/{sandbox}"
        found = [
            web.get("/sandboxes", self._list),
            web.get("/v2/sandboxes", self._list),
            web.post("/sandboxes", self._create),
            web.post("/v2/sandboxes", self._create),
            web.get("/sandboxes/metrics", self._metrics_of_many),
            web.get(one, self._get),
            web.delete(one, self._kill),
            web.post(f"{one}/timeout", self._timeout),
            web.post(f"{one}/refreshes", self._refresh),
            web.post(f"{one}/pause", self._pause),
            web.post(f"{one}/resume", self._resume),
            web.post(f"{one}/connect", self._connect),
            web.post(f"/v2{one}/connect", self._connect),
            web.get(f"{one}/metrics", self._metrics),
            web.get(f"{one}/logs", self._logs),
            web.get(f"/v2{one}/logs", self._logs_v2),
            web.get("/templates", self._templates),
            web.get("/v2/templates", self._templates),
        ]
        for path, what in (
            (f"{one}/network", "changes of a network: say what it may reach when it is made"),
            (f"{one}/fork", "forks of a sandbox"),
            (f"{one}/snapshots", "snapshots"),
            ("/snapshots", "snapshots"),
            ("/volumes", "volumes"),
            ("/secrets", "secrets: hand them over as variables or files"),
            ("/v3/templates", "builds of templates: name a directory with --template NAME=DIR"),
        ):
            found.append(web.route("*", path, _unsupported(what)))
        return found

    # What a sandbox looks like.

    def _short(self, held: Held) -> dict[str, Any]:
        return {
            "templateID": held.wanted.template,
            "alias": held.wanted.template,
            "sandboxID": held.id,
            "clientID": "tegu",
            "envdVersion": ENVD_VERSION,
        }

    def _access(self, held: Held) -> dict[str, Any]:
        return {
            **self._short(held),
            "envdAccessToken": held.token,
            "trafficAccessToken": held.port_token,
            "domain": self._domain,
        }

    def _listed(self, held: Held) -> dict[str, Any]:
        limits = held.wanted.box.limits
        return {
            **self._short(held),
            "startedAt": _time(held.created),
            "endAt": _time(_NO_END if held.end_at is None else held.end_at),
            **_resources(limits),
            "state": "paused" if held.paused else "running",
            "metadata": dict(held.wanted.metadata),
        }

    def _detail(self, held: Held) -> dict[str, Any]:
        wanted = held.wanted
        return {
            **self._listed(held),
            "envdAccessToken": held.token,
            "domain": self._domain,
            **to_e2b(wanted.box.network),
            "lifecycle": {
                "onTimeout": "pause" if wanted.pause else "kill",
                "autoResume": wanted.wake,
            },
            **({"pauseMode": "full"} if held.paused else {}),
        }

    # Making one.

    async def _create(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        key = request.headers.get("Idempotency-Key")
        if key is None:
            held = await self._make(data)
            return web.json_response(self._access(held), status=201)
        digest = hashlib.sha256(data).digest()
        before = self._keys.get(key)
        if before is not None:
            if before[0] != digest:
                raise Fault("already_exists", "Idempotency-Key: it was used for another request")
            name = await asyncio.shield(before[1])
            return web.json_response(self._access(self._hub.get(name)), status=201)
        made: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._keys[key] = (digest, made)
        while len(self._keys) > _REMEMBERED_KEYS:
            self._keys.popitem(last=False)
        try:
            held = await self._make(data)
        except BaseException as e:
            self._keys.pop(key, None)
            made.set_exception(e if isinstance(e, Fault) else Fault("canceled", "it was given up"))
            made.exception()
            raise
        made.set_result(held.id)
        return web.json_response(self._access(held), status=201)

    async def _make(self, data: bytes) -> Held:
        body = from_json(data)
        if isinstance(body, dict):
            for name, what in _NEVER.items():
                if body.get(name):
                    raise UnsupportedError(f"{name}: {what}")
            body = {k: v for k, v in body.items() if k not in _NEVER}
        said = read(body, _NEW)
        pause = bool(said.get("autoPause", False))
        if pause and said.get("autoPauseMemory") is False:
            raise UnsupportedError("autoPauseMemory: a paused sandbox keeps its memory")
        wake = said.get("autoResume", {}).get("enabled", False)
        if not isinstance(wake, bool):
            raise Fault("invalid_argument", "autoResume.enabled: it is neither true nor false")
        rules = self._hub.rules
        timeout = rules.timeout(said.get("timeout", min(_DEFAULT_TIMEOUT, rules.max_timeout)))
        box = rules.box_of(said["templateID"])
        network = from_e2b(said.get("allow_internet_access"), said.get("network"))
        if network is not None:
            box = replace(box, network=permitted(box.network, network))
        return await self._hub.create(
            Wanted(
                template=said["templateID"],
                box=box,
                timeout=timeout,
                pause=pause,
                wake=wake,
                env=said.get("envVars", {}),
                metadata=said.get("metadata", {}),
            )
        )

    # Finding them.

    async def _list(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        states = {s for value in query.getall("state", []) for s in value.split(",") if s}
        if states - {"running", "paused"}:
            raise Fault("invalid_argument", "state: it is neither running nor paused")
        wanted = metadata(query.get("metadata", ""))
        after = when(query["startedAfter"]) if "startedAfter" in query else None
        found = [
            held
            for held in self._hub.all()
            if (not states or ("paused" if held.paused else "running") in states)
            and wanted.items() <= dict(held.wanted.metadata).items()
            and (after is None or held.created > after)
            and query.get("template", held.wanted.template) == held.wanted.template
        ]
        if query.get("order", "desc") != "asc":
            found.reverse()
        shown, following = page(found, query)
        headers = {"X-Next-Token": following} if following else {}
        return web.json_response([self._listed(h) for h in shown], headers=headers)

    def _held(self, request: web.Request) -> Held:
        return self._hub.get(request.match_info["sandbox"].partition("-")[0])

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._detail(self._held(request)))

    # Its life.

    async def _kill(self, request: web.Request) -> web.StreamResponse:
        await self._held(request).kill()
        return web.Response(status=204)

    async def _timeout(self, request: web.Request) -> web.StreamResponse:
        held = self._held(request)
        seconds = read(from_json(await request.read()), _TIMEOUT)["timeout"]
        if seconds == 0:
            await held.kill("its timeout was set to 0")
        else:
            await held.set_timeout(self._hub.rules.timeout(seconds))
        return web.Response(status=204)

    async def _refresh(self, request: web.Request) -> web.StreamResponse:
        held = self._held(request)
        seconds = read(from_json(await request.read()), _REFRESH).get("duration", 15)
        await held.set_timeout(self._hub.rules.timeout(seconds), only_longer=True)
        return web.Response(status=204)

    async def _pause(self, request: web.Request) -> web.StreamResponse:
        held = self._held(request)
        said = read(from_json(await request.read()), _PAUSE)
        if said.get("memory") is False:
            raise UnsupportedError("memory: a paused sandbox keeps its memory")
        await held.pause()
        return web.Response(status=204)

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        held = self._held(request)
        await held.resume(await self._connect_time(request))
        return web.json_response(self._access(held), status=201)

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        held = self._held(request)
        seconds = await self._connect_time(request)
        if held.paused:
            try:
                await held.resume(seconds)
            except Fault:
                if held.paused:
                    raise
            return web.json_response(self._access(held), status=201)
        await held.set_timeout(seconds, only_longer=True)
        return web.json_response(self._access(held), status=200)

    async def _connect_time(self, request: web.Request) -> float | None:
        said = read(from_json(await request.read()), _CONNECT)
        if said.get("memory") is False:
            raise UnsupportedError("memory: a paused sandbox keeps its memory")
        rules = self._hub.rules
        return rules.timeout(said.get("timeout", min(_DEFAULT_TIMEOUT, rules.max_timeout)))

    # What it does.

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        held = self._held(request)
        if not held.paused:
            await sample(held)
        start, end = (whole(request.query, name) for name in ("start", "end"))
        return web.json_response(
            [
                _metric(s)
                for s in held.samples
                if (start is None or s.time >= start) and (end is None or s.time <= end + 1)
            ]
        )

    async def _metrics_of_many(self, request: web.Request) -> web.StreamResponse:
        names = [
            n for value in request.query.getall("sandbox_ids", []) for n in value.split(",") if n
        ]
        found = {}
        for name in names:
            held = self._hub.find(name.partition("-")[0])
            if held is not None and held.samples:
                found[name] = _metric(held.samples[-1])
        return web.json_response({"sandboxes": found})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        lines = [
            {"timestamp": _time(moment), "line": line} for moment, line in self._held(request).log
        ]
        return web.json_response({"logs": lines, "logEntries": []})

    async def _logs_v2(self, request: web.Request) -> web.StreamResponse:
        entries = [
            {"timestamp": _time(moment), "message": line, "level": "info", "fields": {}}
            for moment, line in self._held(request).log
        ]
        return web.json_response({"logs": entries})

    async def _templates(self, _: web.Request) -> web.StreamResponse:
        since, box = _time(self._hub.since), self._hub.rules.box
        return web.json_response(
            [
                {
                    "templateID": name,
                    "buildID": name,
                    **_resources(box.limits),
                    "public": True,
                    "aliases": [name],
                    "names": [name],
                    "createdAt": since,
                    "updatedAt": since,
                    "createdBy": None,
                    "lastSpawnedAt": None,
                    "spawnCount": self._hub.started[name],
                    "buildCount": 1,
                    "buildStatus": "ready",
                    "envdVersion": ENVD_VERSION,
                }
                for name in sorted(self._hub.rules.templates)
            ]
        )


def _unsupported(what: str) -> Any:
    async def refuse(_: web.Request) -> web.StreamResponse:
        raise UnsupportedError(what)

    return refuse


def _resources(limits: Limits) -> dict[str, int]:
    """Return what a box may use: where no limit is, what the host has."""
    memory = limits.memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpuCount": math.ceil(limits.cpus or os.cpu_count() or 1),
        "memoryMB": memory // 2**20,
        "diskSizeMB": limits.disk // 2**20,
    }


def _metric(s: Sample) -> dict[str, Any]:
    return {
        "timestamp": _time(s.time),
        "timestampUnix": int(s.time),
        "cpuCount": math.ceil(s.cpus),
        "cpuUsedPct": s.cpu_percent,
        "memUsed": s.memory,
        "memTotal": s.memory_total,
        "memCache": 0,
        "diskUsed": s.disk,
        "diskTotal": s.disk_total,
    }
