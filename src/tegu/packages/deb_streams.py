"""The streams in a package: a slice of its file, decompressed, bounded, read forward only."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

from tegu.errors import UnsupportedError, VerifyError

__all__ = ["OPENERS", "Content", "Forward", "Memory", "Slice"]


class _BrokenError(Exception):
    """The compressed stream ends early or is damaged."""


def _open_zstd(raw: IO[bytes]) -> IO[bytes]:
    try:
        import zstandard
    except ModuleNotFoundError as e:
        raise UnsupportedError(
            "reading .zst members needs the Python module zstandard",
            hint="pip install 'tegu[works]'",
        ) from e
    # 128 MiB is the largest window of `zstd -19 --ultra --long=27`; dpkg's own limit is the same.
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        raw, read_size=1 << 18, read_across_frames=True
    )
    return io.BufferedReader(_Raw(reader), 1 << 18)


class _Raw(io.RawIOBase):
    """Gives a zstandard reader the interface that BufferedReader wants."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        try:
            count: int = self.reader.readinto(buffer)
        except zstandard.ZstdError as e:
            raise _BrokenError(str(e)) from e
        return count


_BROKEN = (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, _BrokenError)
OPENERS: dict[str, Any] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstd,
}


class Slice(io.RawIOBase):
    """The bytes [offset, offset + size) of a file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._fd = file.fileno()
        self._start = self._position = offset
        self._end = offset + size

    def rewind(self) -> None:
        """Start again."""
        self._position = self._start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        left = self._end - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        data = os.pread(self._fd, wanted, self._position)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Forward(io.RawIOBase):
    """A decompressed stream that tarfile may only move forward in, up to `limit` bytes."""

    def __init__(self, stream: IO[bytes], path: Path, limit: int) -> None:
        self._stream = stream
        self._path = path
        self._limit = limit
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        wanted = -1 if size is None else size
        if wanted < 0 or self._position + wanted > self._limit:
            # One byte more than the limit shows whether there is more.
            wanted = self._limit - self._position + 1
        try:
            data = self._stream.read(wanted)
        except _BROKEN as e:
            raise VerifyError(f"{self._path} is damaged: {e or 'it ends early'}") from e
        self._position += len(data)
        if self._position > self._limit:
            raise VerifyError(
                f"{self._path}: holds more than the {self._limit} bytes allowed when decompressed"
            )
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < self._position:
            raise VerifyError(f"{self._path} is damaged: members are not in order")
        while self._position < offset:
            if not self.read(min(offset - self._position, 1 << 20)):
                break
        return self._position


class Content(io.RawIOBase):
    """The content of a member. What breaks while it is read, outside of our frames, is ours too."""

    def __init__(self, stream: IO[bytes], what: str) -> None:
        self._stream = stream
        self._what = what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except tarfile.TarError as e:
            raise VerifyError(f"{self._what} is damaged: {e}") from e
        buffer[: len(data)] = data
        return len(data)


class Memory(io.RawIOBase):
    """A file that is in memory whole: a tar, or a member of one."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def part(self, start: int, size: int) -> memoryview:
        """Return `size` bytes from `start`, without a copy."""
        return self._data[start : start + size]

    @property
    def whole(self) -> memoryview:
        """All of it, without a copy."""
        return self._data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: len(self._data)}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._position + size
        part = bytes(self._data[self._position : end])
        self._position += len(part)
        return part

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
