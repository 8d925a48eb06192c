"""An outside for boxes, in network namespaces of its own: servers, and a DNS server.

Run as a program it serves in the namespace in which it was started (`serve`); imported it is what
tests use of it. Nothing here uses the code that is tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALLOWED, OTHER, THIRD = "203.0.113.10", "203.0.113.20", "203.0.113.30"
ALLOWED6 = "2001:db8:2::10"
DNS, OTHER_DNS = "203.0.113.53", "203.0.113.54"
PRIVATE, METADATA = "10.9.9.9", "169.254.169.254"
HOST, GATEWAY = "198.51.100.1", "198.51.100.2"
HOST6, GATEWAY6 = "2001:db8:1::1", "2001:db8:1::2"
OUTSIDE = [ALLOWED, OTHER, THIRD, DNS, OTHER_DNS, PRIVATE, METADATA]
PORTS = (80, 443, 8443)
UDP_PORT = 123
ZONE: dict[str, dict[int, list[tuple[int, str]]]] = {
    "allowed.example": {1: [(3600, ALLOWED)], 28: [(3600, ALLOWED6)], 16: [(3600, "secret")]},
    "other.example": {1: [(3600, OTHER)]},
    "deep.below.example": {1: [(3600, THIRD)]},
    "alias.example": {5: [(3600, "allowed.example")]},
    "rebind.example": {1: [(3600, PRIVATE)]},
    "loop.example": {1: [(3600, "127.0.0.1")]},
    "meta.example": {1: [(3600, METADATA)]},
    "self.example": {1: [(3600, HOST)]},
    "mapped.example": {28: [(3600, "::ffff:127.0.0.1"), (3600, f"::ffff:{METADATA}")]},
    "short.example": {1: [(0, THIRD)]},
    "both.example": {1: [(3600, METADATA), (3600, THIRD)]},
    "big.example": {1: [(3600, ALLOWED)] + [(3600, f"203.0.113.{n}") for n in range(100, 180)]},
}


def _name(name: str) -> bytes:
    return b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0"


def _dns(query: bytes, *, stream: bool) -> bytes:
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    name, kind = ".".join(labels), int.from_bytes(query[at + 1 : at + 3], "big")
    question = query[12 : at + 5]
    records, owner = [], name
    while 5 in ZONE.get(owner, {}):
        ttl, to = ZONE[owner][5][0]
        records.append(_name(owner) + struct.pack("!HHIH", 5, 1, ttl, len(_name(to))) + _name(to))
        owner = to
    for ttl, text in ZONE.get(owner, {}).get(kind, []):
        value = bytes([len(text)]) + text.encode()
        if kind in (1, 28):
            value = socket.inet_pton(socket.AF_INET if kind == 1 else socket.AF_INET6, text)
        records.append(_name(owner) + struct.pack("!HHIH", kind, 1, ttl, len(value)) + value)
    flags = 0x8180 | (0 if name in ZONE else 3)
    body = question + b"".join(records)
    if len(body) > 500 and not stream:
        return query[:2] + struct.pack("!5H", flags | 0x0200, 1, 0, 0, 0) + question
    return query[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + body


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, answer) -> None:  # type: ignore[no-untyped-def]
        self._answer = answer

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        self._transport = transport

    def datagram_received(self, data: bytes, who: object) -> None:
        with contextlib.suppress(Exception):
            self._transport.sendto(self._answer(data), who)


async def _tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say where the client came to, then echo until it ends."""
    place = writer.get_extra_info("sockname")
    with contextlib.suppress(OSError):
        writer.write(f"{place[0]} {place[1]}\n".encode())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _dns_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    size = int.from_bytes(await reader.readexactly(2), "big")
    reply = _dns(await reader.readexactly(size), stream=True)
    writer.write(len(reply).to_bytes(2, "big") + reply)
    await writer.drain()
    writer.close()


async def serve(role: str) -> None:
    loop = asyncio.get_running_loop()
    if role == "host":
        await asyncio.start_server(_tcp, "127.0.0.1", 8080)
        await asyncio.start_server(_tcp, "0.0.0.0", 8081)
        abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        abstract.bind("\0tegu-world")
        await asyncio.start_unix_server(_tcp, sock=abstract)
    else:
        for port in PORTS:
            await asyncio.start_server(_tcp, "0.0.0.0", port)
            await asyncio.start_server(_tcp, ALLOWED6, port)
        for address in (ALLOWED, OTHER, METADATA, ALLOWED6):
            shown = address.encode() + b" "
            await loop.create_datagram_endpoint(
                lambda shown=shown: _Udp(lambda data: shown + data),  # type: ignore[misc]
                local_addr=(address, UDP_PORT),
            )
        for address in (DNS, OTHER_DNS):
            await loop.create_datagram_endpoint(
                lambda: _Udp(lambda data: _dns(data, stream=False)), local_addr=(address, 53)
            )
            await asyncio.start_server(_dns_tcp, address, 53)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Space:
    """A process in a network and mount namespace of its own, in which others can be started."""

    def __init__(self, setup: list[str]) -> None:
        self.holder = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", "echo up; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._started = [self.holder]
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"up\n"
        self.run("ip link set lo up")
        for line in setup:
            self.run(line)

    def enter(self) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m"]

    def run(self, command: str) -> str:
        done = subprocess.run(
            [*self.enter(), "sh", "-c", command], check=True, capture_output=True, text=True
        )
        return done.stdout

    def serve(self, role: str) -> None:
        command = [*self.enter(), sys.executable, __file__, role]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self._started.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"

    def say(self, host: str, port: int, text: str = "hello") -> str:
        """Return what a server says to a client in this namespace, or the error."""
        script = (
            "import socket, sys\n"
            "try:\n"
            f" s = socket.create_connection(({host!r}, {port}), 120)\n"
            f" s.sendall({text!r}.encode()); s.shutdown(1)\n"
            " print(s.makefile().read())\n"
            "except OSError as e: print('error', e)"
        )
        return subprocess.run(
            [*self.enter(), sys.executable, "-I", "-c", script],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def close(self) -> None:
        for process in reversed(self._started):
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


@contextmanager
def world() -> Iterator[Space]:
    """Yield the namespace that stands for the host; another one beside it is the outside."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        outside, host = Space([]), None
        stack.callback(outside.close)
        host = Space([])
        stack.callback(host.close)
        subprocess.run(
            [
                *("ip", "link", "add", "w0", "netns", str(host.holder.pid), "type", "veth"),
                *("peer", "name", "w1", "netns", str(outside.holder.pid)),
            ],
            check=True,
        )
        for space, name, v4, v6 in (
            (outside, "w1", GATEWAY, GATEWAY6),
            (host, "w0", HOST, HOST6),
        ):
            # No address of the link's own: those take effect later, and routes shall stand still.
            space.run(f"ip link set {name} addrgenmode none up")
            space.run(f"ip addr add {v4}/24 dev {name}")
            space.run(f"ip -6 addr add {v6}/64 dev {name} nodad")
        for address in OUTSIDE:
            outside.run(f"ip addr add {address}/32 dev lo")
        outside.run(f"ip -6 addr add {ALLOWED6}/128 dev lo nodad")
        host.run(f"ip route add default via {GATEWAY}; ip -6 route add default via {GATEWAY6}")
        resolv = Path(directory) / "resolv.conf"
        resolv.write_text(f"nameserver {DNS}\n")
        host.run(f"mount --bind {resolv} /etc/resolv.conf")
        outside.serve("outside")
        host.serve("host")
        yield host


def why_not() -> str:
    """Return why there can be no world here, or ""."""
    if os.geteuid() != 0:
        return "network namespaces for a world outside need root"
    probe = ["unshare", "-n", "ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1"]
    done = subprocess.run(probe, capture_output=True, text=True)
    return f"no pairs of network devices here: {done.stderr.strip()}" if done.returncode else ""


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
