"""Lists of sandboxes as E2B's clients ask for them: filters, times, pages."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import parse_qsl, unquote

from tegu.sandbox.web.fault import Fault
from tegu.sandbox.web.held import Held

__all__ = ["metadata", "page", "when", "whole"]

_PAGE = 100


def metadata(text: str) -> dict[str, str]:
    """Return the pairs of a filter: URL-encoded twice, as E2B's clients send it."""
    return {unquote(k): unquote(v) for k, v in parse_qsl(text, keep_blank_values=True)}


def when(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace(" ", "+")).timestamp()
    except (ValueError, OverflowError):
        raise Fault("invalid_argument", f"startedAfter: {text[:40]!r} is no time") from None


def whole(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Fault("invalid_argument", f"{name}: {text[:40]!r} is no whole number")
    return int(text)


def page(found: list[Held], query: Mapping[str, str]) -> tuple[list[Held], str]:
    """Return one page, and the token of the next, which is where this one ends."""
    limit = whole(query, "limit") or _PAGE
    at = 0
    token = query.get("nextToken")
    if token:
        try:
            created, name = json.loads(base64.urlsafe_b64decode(token))
        except (binascii.Error, ValueError, TypeError):
            raise Fault("invalid_argument", "nextToken: it is none of ours") from None
        if not isinstance(created, float) or not isinstance(name, str):
            raise Fault("invalid_argument", "nextToken: it is none of ours")
        newest_first = query.get("order", "desc") != "asc"
        beyond = [
            i
            for i, h in enumerate(found)
            if ((h.created, h.id) < (created, name)) == newest_first
            and (h.created, h.id) != (created, name)
        ]
        at = beyond[0] if beyond else len(found)
    page = found[at : at + limit]
    if at + limit >= len(found) or not page:
        return page, ""
    last = json.dumps([page[-1].created, page[-1].id]).encode()
    return page, base64.urlsafe_b64encode(last).decode()
