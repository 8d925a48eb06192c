"""An operation of our own API, declared once: what routes, checks and describes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.fields import Field, from_json, read

__all__ = ["Answer", "Call", "Operation"]


@dataclass(frozen=True)
class Answer:
    """What a call is answered with: a schema's name, or a media type, or nothing."""

    status: int
    about: str
    schema: str | None = None
    many: bool = False
    media: str | None = None


@dataclass(frozen=True)
class Call:
    """A request whose fields were checked."""

    request: web.Request
    body: Mapping[str, Any]
    query: Mapping[str, Any]

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return self.request.match_info[name]


@dataclass(frozen=True)
class Operation:
    """A method and a path under /v1; `body` are the fields of its JSON body, `raw` says that the
    body is data instead."""

    method: str
    path: str
    name: str
    about: str
    answer: Answer
    handler: Callable[[Call], Awaitable[web.StreamResponse]]
    query: Sequence[Field] = ()
    body: Sequence[Field] | None = None
    raw: bool = False
    websocket: str | None = None
    """How its WebSocket is spoken, if it is one."""
    any_query: bool = False
    """Whether the query is somebody else's."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Check a request, and carry it out. Raises Fault."""
        query: Mapping[str, Any] = {}
        if not self.any_query:
            query = read(_typed(request, self.query), self.query, what="the query")
        body: Mapping[str, Any] = {}
        if self.body is not None:
            body = read(from_json(await request.read()), self.body)
        return await self.handler(Call(request, body, query))


def _typed(request: web.Request, known: Sequence[Field]) -> dict[str, Any]:
    """Return a query's values as the kinds that are wanted; text where they do not fit."""
    kinds = {f.name: f.kind for f in known}
    found: dict[str, Any] = {}
    for name, text in request.query.items():
        if name in found:
            raise Fault("invalid_argument", f"{name}: it is said twice")
        kind = kinds.get(name)
        if kind == "whole" and text.isascii() and text.isdigit() and len(text) < 19:
            found[name] = int(text)
        elif kind == "flag" and text in ("true", "false"):
            found[name] = text == "true"
        else:
            found[name] = text
    return found
