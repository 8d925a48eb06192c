"""Which name servers answer: each is asked one question (RFC 1035), whatever the answer."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from tegu.heal.snapshot import text

__all__ = ["Server", "ask", "ask_servers"]

_TRIES = 3
_PATIENCE = 1.0  # seconds for each try
_STRANGE = 16  # packets that are no answer to us
_STUB = "127.0.0.53"  # systemd-resolved(8)


@dataclass(frozen=True, slots=True)
class Server:
    """A name server: where it comes from, and whether it said anything."""

    address: str
    source: str
    answers: bool
    why: str = ""


def ask_servers(root: Path = Path("/")) -> list[Server]:
    """Ask the servers of resolv.conf(5), and those behind systemd-resolved."""
    sources = {"/etc/resolv.conf": root / "etc/resolv.conf"}
    addresses = _addresses(sources["/etc/resolv.conf"])
    found: dict[str, str] = dict.fromkeys(addresses, "/etc/resolv.conf")
    if _STUB in found:
        for address in _addresses(root / "run/systemd/resolve/resolv.conf"):
            found.setdefault(address, "systemd-resolved")
    return [Server(a, s, *ask(a)) for a, s in found.items()]


def _addresses(path: Path) -> list[str]:
    found = []
    for line in text(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(words[1])
    return found


def ask(address: str, port: int = 53) -> tuple[bool, str]:
    """Send a question for localhost, which every server can answer; any reply counts.

    Returns whether one came, and else why not.
    """
    number = struct.unpack("!H", os.urandom(2))[0]
    question = b"\x09localhost\0" + struct.pack("!HH", 1, 1)
    packet = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + question
    why = f"no answer within {_TRIES * _PATIENCE:g} s"
    try:
        kind, _, _, _, where = socket.getaddrinfo(
            address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )[0]
    except OSError as e:
        return False, str(e.strerror)
    for _ in range(_TRIES):
        try:
            with socket.socket(kind, socket.SOCK_DGRAM) as s:
                s.settimeout(_PATIENCE)
                s.connect(where)
                s.send(packet)
                for _ in range(_STRANGE):
                    reply = s.recv(4096)
                    if len(reply) >= 12 and struct.unpack("!H", reply[:2])[0] == number:
                        return True, ""
        except TimeoutError:
            continue
        except OSError as e:
            why = (e.strerror or str(e)).lower()
    return False, why
