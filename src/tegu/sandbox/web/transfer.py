"""Files in and out of a sandbox over plain HTTP; and what else E2B's clients ask a sandbox."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

from aiohttp import BodyPartReader, web

from tegu.sandbox.web.fault import Fault, as_fault
from tegu.sandbox.web.fields import Field, from_json, read
from tegu.sandbox.web.gate import HELD
from tegu.sandbox.web.held import Held
from tegu.sandbox.web.tree import CHUNK, Info, Tree
from tegu.sandbox.web.usage import sample
from tegu.sandbox.web.users import HOME, check_user

__all__ = ["routes", "send_file", "take_body"]

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_FILENAME = re.compile(r'[ ;]filename="([^"]*)"')
_NOTE = "x-metadata-"


async def send_file(request: web.Request, held: Held, path: str) -> web.StreamResponse:
    """Answer with a file's content, or the part of it that a Range header asks for (RFC 9110)."""
    tree = Tree(held)
    fd = await tree.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        start, length, partial = _range(request, size)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"inline; filename*=utf-8''{_quoted(path)}",
            "X-Content-Type-Options": "nosniff",
            "Accept-Ranges": "bytes",
            "Content-Length": str(length),
        }
        if partial:
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        response = web.StreamResponse(status=206 if partial else 200, headers=headers)
        await response.prepare(request)
        if request.method != "HEAD":
            async for data in tree.read(fd, start=start, length=length):
                await response.write(data)
        await response.write_eof()
    finally:
        os.close(fd)
    return response


def _quoted(path: str) -> str:
    return quote(posixpath.basename(path), safe="", errors="surrogateescape")


def _range(request: web.Request, size: int) -> tuple[int, int, bool]:
    found = _RANGE.fullmatch(request.headers.get("Range", ""))
    if found is None or not (found[1] or found[2]):
        return 0, size, False
    if found[1]:
        start = int(found[1])
        end = min(int(found[2]), size - 1) if found[2] else size - 1
    else:
        start, end = max(0, size - int(found[2])), size - 1
    if start >= size or end < start:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return start, end - start + 1, True


async def take_body(request: web.Request) -> AsyncIterator[bytes]:
    """Yield a request's body; one that ends early is an error, not a short file."""
    async for data in request.content.iter_chunked(CHUNK):
        yield data


def _user(request: web.Request) -> None:
    check_user(request.query.get("username", ""))


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name.lower().removeprefix(_NOTE): value
        for name, value in headers.items()
        if name.lower().startswith(_NOTE)
    }


def _written(info: Info) -> dict[str, Any]:
    found: dict[str, Any] = {"name": info.name, "type": info.kind, "path": info.path}
    if info.metadata:
        found["metadata"] = info.metadata
    return found


async def _download(request: web.Request) -> web.StreamResponse:
    _user(request)
    path = Tree(request[HELD]).resolve(request.query.get("path", ""), HOME)
    return await send_file(request, request[HELD], path)


async def _part(part: BodyPartReader) -> AsyncIterator[bytes]:
    while data := await part.read_chunk(CHUNK):
        yield data


def _filename(part: BodyPartReader) -> str:
    """Return a part's file name whole: aiohttp takes the slash before an absolute path away.

    Escapes are those of forms (WHATWG HTML, multipart/form-data), and of quoted text in headers.
    """
    found = _FILENAME.search(part.headers.get("Content-Disposition", ""))
    if found is None:
        return part.filename or ""
    name = found[1].encode(errors="surrogateescape").decode(errors="replace")
    for escape, character in (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"), ("\\\\", "\\")):
        name = name.replace(escape, character)
    return name


async def _upload(request: web.Request) -> web.StreamResponse:
    _user(request)
    tree = Tree(request[HELD])
    named = request.query.get("path", "")
    notes = _metadata(request.headers)
    written: list[dict[str, Any]] = []
    if request.content_type == "multipart/form-data":
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or part.name != "file":
                raise Fault("invalid_argument", "a part of the form is not named 'file'")
            if named and written:
                raise Fault("invalid_argument", "path names one file, and the form has several")
            path = tree.resolve(named or _filename(part), HOME)
            written.append(_written(await tree.write(path, _part(part), notes)))
    else:
        path = tree.resolve(named, HOME)
        written.append(_written(await tree.write(path, take_body(request), notes)))
    return web.json_response(written)


async def _health(request: web.Request) -> web.StreamResponse:
    """The service's health, or (the gate has looked) that of a sandbox."""
    return web.Response(status=204)


async def _environment(request: web.Request) -> web.StreamResponse:
    return web.json_response(request[HELD].env)


async def _init(request: web.Request) -> web.StreamResponse:
    known = (Field("envVars", "table", "Variables of all programs that start from now on."),)
    said = read(from_json(await request.read()), known)
    request[HELD].env.update(said.get("envVars", {}))
    return web.Response(status=204)


async def _metrics(request: web.Request) -> web.StreamResponse:
    try:
        found = await sample(request[HELD])
    except OSError as e:
        raise as_fault(e) from e
    return web.json_response(
        {
            "ts": int(found.time),
            "cpu_count": found.cpus,
            "cpu_used_pct": found.cpu_percent,
            "mem_total": found.memory_total,
            "mem_used": found.memory,
            "disk_used": found.disk,
            "disk_total": found.disk_total,
        }
    )


def routes() -> list[web.RouteDef]:
    """Return the routes that are for one sandbox."""
    return [
        web.get("/files", _download),
        web.post("/files", _upload),
        web.get("/health", _health),
        web.get("/envs", _environment),
        web.post("/init", _init),
        web.get("/metrics", _metrics),
    ]
