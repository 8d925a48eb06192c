"""How this machine reaches another one, so that the capture kernel can do the same without DHCP."""

from __future__ import annotations

import ipaddress
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import TeguError, UnsupportedError
from tegu.process import run

__all__ = ["Route", "read_route", "route_to"]


@dataclass(frozen=True, slots=True)
class Route:
    """The way to `peer` (an address): from the device with hardware address `mac` (and driver
    module `module`, if it is one), with `addresses` (ADDRESS/PREFIX), by `gateway` or directly."""

    peer: str
    device: str
    mac: str
    module: str | None
    addresses: tuple[str, ...]
    gateway: str


def route_to(host: str, port: int) -> Route:
    """Find the way to `host` as it is now; raises TeguError when there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise TeguError(f"cannot find the address of {host}: {e.strerror or e}") from e
    peer = str(found[0][4][0])
    route = run(["ip", "-json", "route", "get", peer]).stdout
    device, gateway = read_route(route)
    place = Path("/sys/class/net") / device
    if not (place / "device").exists():
        raise UnsupportedError(
            f"{host} is reached through {device}, which is not a network card of its own",
            hint="bridges, bonds and tunnels are not set up by the capture kernel",
        )
    addresses = run(["ip", "-json", "address", "show", "dev", device]).stdout
    module = place / "device/driver/module"
    return Route(
        peer,
        device,
        (place / "address").read_text().strip(),
        module.resolve().name if module.exists() else None,
        tuple(_addresses(addresses, ipaddress.ip_address(peer).version)),
        gateway,
    )


def read_route(text: str) -> tuple[str, str]:
    """Return (device, gateway or "") from the JSON of `ip route get`; raises TeguError."""
    try:
        (entry, *_) = json.loads(text)
        device = entry["dev"]
        gateway = entry.get("gateway", "")
    except (ValueError, KeyError, TypeError) as e:
        raise TeguError("cannot understand what `ip route get` says") from e
    return str(device), str(gateway)


def _addresses(text: str, version: int) -> list[str]:
    family = "inet" if version == 4 else "inet6"
    entries: list[dict[str, Any]] = json.loads(text)
    return [
        f"{info['local']}/{info['prefixlen']}"
        for entry in entries
        for info in entry.get("addr_info", ())
        if info.get("family") == family and info.get("scope") == "global"
    ]
