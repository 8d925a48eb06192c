"""Ports of boxes as callers write them: "8080:8000", "127.0.0.1:8080:8000", "8000"."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tegu.errors import UsageError

__all__ = ["MAX_PORTS", "Published", "check_ports", "parse_port"]

MAX_PORTS = 64
_WORD = re.compile(r"(?:(\[[^\]]*\]|[^:]*):)?(?:([0-9]{1,5}):)?([0-9]{1,5})", re.ASCII)
_HERE = "127.0.0.1"


@dataclass(frozen=True)
class Published:
    """Port `host_port` of `address` of the host leads to `port` of the box. 0: any that is free."""

    port: int
    host_port: int = 0
    address: str = _HERE

    def __post_init__(self) -> None:
        for what, value, least in (("port", self.port, 1), ("host_port", self.host_port, 0)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"publish: {what} {value!r} is no whole number")
            if not least <= value < 65536:
                raise UsageError(f"publish: {what} {value} is not between {least} and 65535")
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            raise UsageError(f"publish: {self.address!r} is no address of this host") from None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"address": self.address, "host_port": self.host_port, "port": self.port}


def parse_port(word: str) -> Published:
    """Read "GUEST", "HOST:GUEST" or "ADDRESS:HOST:GUEST". Raises UsageError."""
    found = _WORD.fullmatch(word)
    if found is None:
        raise UsageError(
            f"publish: {word!a} is not HOST:GUEST", hint="as in 8080:8000 or 127.0.0.1:8080:8000"
        )
    first, host, guest = found.groups()
    if host is None and first is not None:
        if not first.isascii() or not first.isdigit():
            raise UsageError(f"publish: {word!a}: {first!a} is no port")
        first, host = None, first
    address = _HERE if first is None else first.removeprefix("[").removesuffix("]")
    return Published(int(guest), int(host or 0), address)


def check_ports(value: object) -> tuple[str, ...]:
    """Return the ports of a box's description, each checked. Raises UsageError."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UsageError(f"publish: {value!a} is no list of HOST:GUEST")
    if len(value) > MAX_PORTS:
        raise UsageError(f"publish: {len(value)} ports are more than {MAX_PORTS}")
    for word in value:
        if not isinstance(word, str):
            raise UsageError(f"publish: {word!a} is not HOST:GUEST")
        parse_port(word)
    return tuple(value)
