"""As whom programs run and files are touched: root of the sandbox, and nobody else."""

from __future__ import annotations

import base64
import binascii

from aiohttp import web

from tegu.sandbox.web.fault import Fault

__all__ = ["HOME", "check_named_user", "check_user"]

HOME = "/root"


def check_user(name: str) -> None:
    """Raise Fault unless a program may run as this user: root, or who is not named."""
    if name not in ("", "root"):
        raise Fault(
            "unauthenticated",
            f"invalid username: {name!r}",
            hint="programs run as root of their sandbox, who is nobody on the host",
        )


def check_named_user(request: web.Request) -> None:
    """As `check_user`, for who is named by HTTP Basic authentication, as E2B's clients do."""
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return
    try:
        name = base64.b64decode(text, validate=True).decode().partition(":")[0]
    except (binascii.Error, ValueError):
        raise Fault("unauthenticated", "Authorization: it is not base64") from None
    check_user(name)
