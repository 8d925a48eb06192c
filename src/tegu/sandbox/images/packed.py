"""A layer's blob as a stream of tar: unpacked, counted and checked as it is read."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from tegu.errors import SandboxError, UnsupportedError, VerifyError
from tegu.sandbox.images.layout import Layer

__all__ = ["Budget", "Packed"]

_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_XZ = b"\xfd7zXZ\0"
_ANY_ZLIB = 31
"""wbits of zlib.decompressobj: a gzip header and trailer."""


class Budget:
    """How much an image may take: bytes, and files."""

    def __init__(self, size: int, files: int) -> None:
        self.size, self.files = size, files
        self._bytes = self._files = 0

    def take(self, count: int) -> None:
        """Count bytes; raises SandboxError when they are too many."""
        self._bytes += count
        if self._bytes > self.size:
            raise SandboxError(
                f"too big: more than {self.size >> 20} MiB unpacked",
                hint="--max-size allows more",
            )

    def one_more(self) -> None:
        """Count a file; raises SandboxError when they are too many."""
        self._files += 1
        if self._files > self.files:
            raise SandboxError(f"too big: more than {self.files} files")


class Packed:
    """What tarfile reads a layer from. `finish` says whether it was the layer that was meant."""

    def __init__(self, path: Path, layer: Layer, budget: Budget) -> None:
        self._path = path
        self._layer = layer
        self._budget = budget
        self._outer = hashlib.sha256()
        self._inner = hashlib.sha256()
        self._got = 0
        self._parts = self._unpacked()
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes of tar; fewer at the end only."""
        parts, have = [self._rest], len(self._rest)
        while have < size:
            part = next(self._parts, b"")
            if not part:
                break
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]

    def finish(self) -> None:
        """Read what is left. Raises VerifyError when blob or content are not as announced."""
        for _ in self._parts:
            pass
        self._check()

    def _check(self) -> None:
        digest = f"sha256:{self._outer.hexdigest()}"
        if self._got != self._layer.size or digest != self._layer.digest:
            raise VerifyError(
                f"damaged: {self._got} bytes with {digest}, "
                f"and {self._layer.size} bytes were announced"
            )
        if f"sha256:{self._inner.hexdigest()}" != self._layer.diff_id:
            raise VerifyError("damaged: its content is not the one that the configuration names")

    def _raw(self) -> Iterator[bytes]:
        with self._path.open("rb") as f:
            while chunk := f.read(_CHUNK):
                self._outer.update(chunk)
                self._got += len(chunk)
                yield chunk

    def _unpacked(self) -> Iterator[bytes]:
        raw = self._raw()
        first = next(raw, b"")
        if first.startswith(_GZIP):
            parts = _gunzip(first, raw)
        elif first.startswith(_ZSTD):
            parts = _unzstd(first, raw)
        elif first.startswith(_XZ):
            raise UnsupportedError("a layer packed by xz, which no image should have")
        else:
            parts = _plain(first, raw)
        for part in parts:
            self._inner.update(part)
            self._budget.take(len(part))
            yield part


def _plain(first: bytes, more: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from more


def _gunzip(first: bytes, more: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack one gzip member after the other (RFC 1952), a megabyte at a time."""
    unpacker = zlib.decompressobj(_ANY_ZLIB)
    begun = True
    try:
        for chunk in _plain(first, more):
            data = chunk
            while data:
                part = unpacker.decompress(data, _CHUNK)
                data = unpacker.unconsumed_tail
                if part:
                    yield part
                while len(part) == _CHUNK and not data and not unpacker.eof:
                    part = unpacker.decompress(b"", _CHUNK)
                    if part:
                        yield part
                begun = not unpacker.eof
                if unpacker.eof:
                    data = unpacker.unused_data.lstrip(b"\0")
                    unpacker = zlib.decompressobj(_ANY_ZLIB)
    except zlib.error as e:
        raise VerifyError(f"damaged: {e}") from e
    if begun:
        raise VerifyError("damaged: it ends too early")


def _unzstd(first: bytes, more: Iterator[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as e:
        raise UnsupportedError(
            "a layer packed by zstd: Python's zstandard is not installed",
            hint="install the package python3-zstandard",
        ) from e
    unpacker = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
    try:
        for chunk in _plain(first, more):
            for at in range(0, len(chunk), 4096):  # what comes out is bounded by what goes in
                data = chunk[at : at + 4096]
                while data:
                    part = unpacker.decompress(data)
                    if part:
                        yield part
                    data = b""
                    if unpacker.eof:
                        data = unpacker.unused_data
                        unpacker = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
    except zstandard.ZstdError as e:
        raise VerifyError(f"damaged: {e}") from e
