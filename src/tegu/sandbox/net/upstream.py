"""The host's own resolvers, asked in a box's place (resolv.conf(5), RFC 1035, RFC 5452)."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tegu.sandbox.net import dns

__all__ = ["Upstream", "read_servers"]

_PATH = Path("/etc/resolv.conf")
_PORT = 53
_MOST_SERVERS = 3
_ROUNDS = 3
_WAIT = 5.0
_MAX_TCP = 65535


def read_servers(text: str) -> list[str]:
    """Return the addresses of the resolvers that a resolv.conf names; 127.0.0.1 when none is."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with suppress(ValueError):
                address = words[1]
                ipaddress.ip_address(address)
                found.append(address)
    return found[:_MOST_SERVERS] or ["127.0.0.1"]


class _Asking(asyncio.DatagramProtocol):
    """Waits for the one datagram that answers; others, guessed or late, are passed over."""

    def __init__(self, fits: Callable[[bytes], bool]) -> None:
        self._fits = fits
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _: object) -> None:
        if not self.answer.done() and self._fits(data):
            self.answer.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Upstream:
    """Asks the resolvers of a resolv.conf, which is read again when it has changed."""

    def __init__(self, path: Path = _PATH) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._servers = ["127.0.0.1"]

    def _now(self) -> list[str]:
        try:
            about = self._path.stat()
            seen = (about.st_mtime_ns, about.st_ino)
            if seen != self._seen:
                self._servers = read_servers(self._path.read_text(errors="replace"))
                self._seen = seen
        except OSError:
            return self._servers
        return self._servers

    async def ask(self, name: str, kind: int) -> bytes:
        """Return a whole response, with the number 0. Raises OSError or ValueError when there is
        none."""
        for attempt in range(_ROUNDS):
            for server in self._now():
                with suppress(OSError, asyncio.TimeoutError):
                    return await self._ask(server, name, kind)
            if attempt + 1 < _ROUNDS:
                await asyncio.sleep(0.2)
        raise OSError("no resolver answers")

    async def _ask(self, server: str, name: str, kind: int) -> bytes:
        number = secrets.randbelow(65536)
        wanted = dns.Question(number, name, kind, b"")
        message = dns.query(name, kind, number)

        def fits(data: bytes) -> bool:
            try:
                dns.read_answer(data, wanted)
            except ValueError:
                return False
            return True

        async with asyncio.timeout(_WAIT):
            data = await self._by_datagram(server, message, fits)
            if dns.read_answer(data, wanted).truncated:
                data = await self._by_stream(server, message)
                if not fits(data):
                    raise OSError("a resolver answers what was not asked")
        return bytes(2) + data[2:]

    async def _by_datagram(
        self, server: str, message: bytes, fits: Callable[[bytes], bool]
    ) -> bytes:
        loop = asyncio.get_running_loop()
        transport, asking = await loop.create_datagram_endpoint(
            lambda: _Asking(fits), remote_addr=(server, _PORT)
        )
        try:
            transport.sendto(message)
            return await asking.answer
        finally:
            transport.close()

    async def _by_stream(self, server: str, message: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(server, _PORT, limit=2 * _MAX_TCP)
        try:
            writer.write(len(message).to_bytes(2, "big") + message)
            size = int.from_bytes(await reader.readexactly(2), "big")
            return await reader.readexactly(size)
        except asyncio.IncompleteReadError as e:
            raise OSError("a resolver broke off") from e
        finally:
            writer.close()
