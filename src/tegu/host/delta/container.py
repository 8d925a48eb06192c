"""The file that a delta is: a header in JSON, then six streams, each compressed with xz.

    8 bytes   TEGUDLT1
    4 bytes   length of the header, little-endian
    header    {"format", "from", "to", "contents", "streams": {NAME: [packed, size]}}, in bytes
    streams   plan, add, take, move, difference, fresh: nothing between or behind them

`plan` says how each content is made (`PlanItem`), the first one being the new tree's table; the
others are what `patch.patched` reads, content after content. Sizes are declared and enforced.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from tegu.errors import UpgradeError, VerifyError

__all__ = [
    "FORMAT",
    "MAGIC",
    "STREAMS",
    "Description",
    "Header",
    "PlanItem",
    "Stream",
    "describe",
    "open_delta",
    "parse_plan",
    "read_header",
]

FORMAT = 1
MAGIC = b"TEGUDLT1"
STREAMS = ("plan", "add", "take", "move", "difference", "fresh")
_LENGTH = struct.Struct("<I")
_MAX_HEADER = 1 << 16
_MAX_PLAN = 1 << 26
_MAX_STREAM = 1 << 42
_MAX_CONTENT = 1 << 32
_MEMORY = 80 << 20
"""What decompressing one stream may take: its dictionary (16 MiB as we write them) and a bit."""

_READ = 1 << 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Description:
    """A delta as a release lists it: tree digests `old` and `new`, `size` in bytes, `sha256`.

    `format` is the version of the file's format, `entries` and `tree_size` are of the new tree.
    """

    format: int
    old: str
    new: str
    size: int
    sha256: str

    def to_json(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self), sort_keys=True) + "\n"

    @classmethod
    def read(cls, text: str) -> Description:
        """Read what `to_json` wrote; VerifyError when it is none."""
        try:
            found = cls(**json.loads(text))
            digests = (found.old, found.new, found.sha256)
            if found.format != FORMAT or not all(_DIGEST.fullmatch(d) for d in digests):
                raise ValueError("a format or digests of another kind")
        except (ValueError, TypeError) as e:
            raise VerifyError(f"this describes no delta that can be used here: {e}") from e
        return found


@dataclass(frozen=True, slots=True)
class Header:
    """`streams` maps names to where they begin, their packed size and their size, in bytes."""

    old: str
    new: str
    contents: int
    streams: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class PlanItem:
    """How one content is made.

    `base` is the record of the old table that it is the difference to (-1: the old table itself for
    the first item, nothing for others), read as `decode` says ("": as it is, or the name of a
    recoding). `count` instructions make `size` bytes, which `recode` turns into the content.
    """

    base: int
    decode: str
    count: int
    size: int
    recode: tuple[str, Mapping[str, int]] | None

    def as_list(self) -> list[Any]:
        recode = None if self.recode is None else [self.recode[0], dict(self.recode[1])]
        return [self.base, self.decode, self.count, self.size, recode]


def parse_plan(data: bytes, contents: int, old_records: int) -> list[PlanItem]:
    """Read the plan; VerifyError unless it is one for so many contents."""
    try:
        raw = json.loads(data)
        if not isinstance(raw, list) or len(raw) != contents:
            raise ValueError("another number of contents than the header says")
        return [_item(item, old_records) for item in raw]
    except (ValueError, TypeError, RecursionError) as e:
        raise VerifyError(f"the plan of the delta is none: {e}") from e


def _item(raw: Any, old_records: int) -> PlanItem:
    base, decode, count, size, recode = raw
    numbers = all(type(n) is int for n in (base, count, size))
    if not numbers or not isinstance(decode, str):
        raise ValueError("a field of another kind")
    if not -1 <= base < old_records or not 0 <= count <= _MAX_CONTENT:
        raise ValueError("a number out of bounds")
    if not 0 <= size <= _MAX_CONTENT:
        raise ValueError(f"a content of {size} bytes")
    if recode is None:
        return PlanItem(base, decode, count, size, None)
    name, values = recode
    if not isinstance(name, str) or not all(type(v) is int for v in values.values()):
        raise ValueError("a recoding of another kind")
    return PlanItem(base, decode, count, size, (name, dict(values)))


class Stream:
    """One stream, decompressed as it is taken; more or less than declared is a VerifyError."""

    def __init__(self, file: IO[bytes], name: str, place: tuple[int, int, int]) -> None:
        self._file, self._name = file, name
        self._next, self._packed, self._left = place
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
        self._buffer = b""

    def take(self, size: int) -> bytes:
        """Return exactly `size` bytes."""
        if size > self._left:
            raise VerifyError(f"the stream {self._name} of the delta is shorter than it must be")
        while len(self._buffer) < size:
            self._buffer += self._more(max(size - len(self._buffer), _READ))
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._left -= size
        return taken

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(self._left)

    def close(self) -> None:
        """Raise VerifyError unless the stream ends here."""
        longer = bool(self._left or self._buffer)
        while not longer and not self._decoder.eof:
            longer = bool(self._decode(self._input(), 1))
        if longer or self._packed or self._decoder.unused_data:
            raise VerifyError(f"the stream {self._name} of the delta is longer than it must be")

    def _more(self, most: int) -> bytes:
        while not self._decoder.eof:
            if out := self._decode(self._input(), most):
                return out
        raise VerifyError(f"the stream {self._name} of the delta ends too soon")

    def _input(self) -> bytes:
        """Return the next bytes of the file when the decoder needs some."""
        if not self._decoder.needs_input:
            return b""
        self._file.seek(self._next)
        data = self._file.read(min(_READ, self._packed))
        if not data:
            raise VerifyError(f"the stream {self._name} of the delta ends too soon")
        self._next += len(data)
        self._packed -= len(data)
        return data

    def _decode(self, data: bytes, most: int) -> bytes:
        try:
            return self._decoder.decompress(data, most)
        except (lzma.LZMAError, EOFError) as e:
            raise VerifyError(f"the stream {self._name} of the delta is damaged: {e}") from e


def read_header(file: IO[bytes], size: int) -> Header:
    """Read the header of a delta of `size` bytes; VerifyError when it is no delta, or cut off."""
    file.seek(0)
    start = file.read(len(MAGIC) + _LENGTH.size)
    if start[: len(MAGIC)] != MAGIC:
        raise VerifyError("this file is no delta of a tree")
    if len(start) < len(MAGIC) + _LENGTH.size:
        raise VerifyError("the delta is cut off")
    (length,) = _LENGTH.unpack(start[len(MAGIC) :])
    text = file.read(min(length, _MAX_HEADER))
    if len(text) != length:
        raise VerifyError("the delta is cut off, or its header is too long")
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise ValueError(f"its format is {raw['format']!r}, this program knows {FORMAT}")
        if not all(_DIGEST.fullmatch(raw[k]) for k in ("from", "to")):
            raise ValueError("its digests are none")
        contents, sizes = raw["contents"], raw["streams"]
        if type(contents) is not int or contents < 1 or set(sizes) != set(STREAMS):
            raise ValueError("it has other streams")
        place, streams = len(start) + length, {}
        for name in STREAMS:
            packed, full = sizes[name]
            most = _MAX_PLAN if name == "plan" else _MAX_STREAM
            if type(packed) is not int or type(full) is not int or not 0 <= full <= most:
                raise ValueError(f"the stream {name} has no size that there can be")
            if packed < 0:
                raise ValueError(f"the stream {name} has no size that there can be")
            streams[name] = (place, packed, full)
            place += packed
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise VerifyError(f"the header of the delta cannot be used: {e}") from e
    if place != size:
        raise VerifyError(f"the delta has {size} bytes and should have {place}: it is cut off"
                          " or not what was published")  # fmt: skip
    return Header(raw["from"], raw["to"], contents, streams)


def open_delta(path: Path) -> BufferedReader:
    """Open a delta for reading; UpgradeError when it cannot be."""
    try:
        return path.open("rb")
    except OSError as e:
        raise UpgradeError(f"{path}: {e.strerror}") from e


def describe(path: Path) -> Description:
    """Return what a release says of the delta `path`; VerifyError when it is none."""
    with open_delta(path) as file:
        size = path.stat().st_size
        header = read_header(file, size)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Description(FORMAT, header.old, header.new, size, digest)
