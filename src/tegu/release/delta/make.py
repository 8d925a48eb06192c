"""A delta made: what the new tree has and the old one has not, as differences, compressed together.

The same trees give the same bytes, with the same versions of bsdiff4 and liblzma.
"""

from __future__ import annotations

import json
import lzma
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tegu.errors import ReleaseError
from tegu.files import atomic_file
from tegu.host.delta import (
    FORMAT,
    MAGIC,
    STREAMS,
    Description,
    PlanItem,
    Recoding,
    Record,
    Table,
    TreeDigest,
    coded,
    coded_move,
    decode,
    describe,
    read_table,
    settings_of,
)
from tegu.release.delta.ancestors import Ancestors
from tegu.release.delta.compare import compared, require_bsdiff

__all__ = ["Made", "make_delta"]

Say = Callable[[str], None]

_MAX_DECODED = 1 << 30
_MAX_DIFFERENCE = 1 << 28
"""Larger files are not compared: bsdiff takes 17 times the old file's size in memory."""

_DICTIONARY = 16 << 20
"""Twelve times as much memory is needed to compress with it."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was made: the delta as a release lists it, and of how many contents it tells."""

    description: Description
    old: TreeDigest
    new: TreeDigest
    contents: int
    differences: int
    recoded: int


@dataclass
class _Stream:
    """A stream while it is made: first as it is, then compressed, in files of its own."""

    plain: IO[bytes]
    file: IO[bytes]
    size: int = 0
    packed: int = 0

    def add(self, data: bytes) -> None:
        self.size += self.plain.write(data)

    def pack(self) -> None:
        """Compress all that was added. The dictionary is as large as it can be of use."""
        dictionary = min(_DICTIONARY, 1 << max(12, (self.size - 1).bit_length()))
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
        encoder = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
        self.plain.seek(0)
        while part := self.plain.read(1 << 20):
            self.packed += self.file.write(encoder.compress(part))
        self.packed += self.file.write(encoder.flush())


def make_delta(old: Path, new: Path, output: Path, *, say: Say = lambda _: None) -> Made:
    """Write to `output` the delta that turns the tree `old` into the tree `new`.

    Both are directories that do not change meanwhile. Raises UnsupportedError without the Python
    package bsdiff4, ReleaseError when a tree cannot be read.
    """
    require_bsdiff()
    before, after = read_table(old, say), read_table(new, say)
    with tempfile.TemporaryDirectory(prefix="tegu-delta-") as scratch:
        making = _Making(old, new, before, after, Path(scratch), say)
        try:
            making.run()
            making.write(output)
        except OSError as e:
            raise ReleaseError(f"the delta cannot be made: {e}") from e
        finally:
            making.close()
    return Made(
        describe(output),
        before.digest(),
        after.digest(),
        len(making.plan) - 1,
        making.differences,
        making.recoded,
    )


@dataclass
class _Making:
    old: Path
    new: Path
    before: Table
    after: Table
    scratch: Path
    say: Say
    plan: list[PlanItem] = field(default_factory=list)
    differences: int = 0
    recoded: int = 0
    streams: dict[str, _Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in STREAMS:
            plain, packed = self.scratch / name, self.scratch / f"{name}.xz"
            self.streams[name] = _Stream(plain.open("w+b"), packed.open("w+b"))

    def run(self) -> None:
        """Fill the streams."""
        table = self.after.encoded()
        instructions, difference, fresh = compared(self.before.encoded(), table)
        self._add(-1, "", instructions, difference, fresh, len(table), None)
        there = {r.content for r in self.before.records if r.kind == "f"}
        ancestors = Ancestors(self.before)
        wanted = []
        for record in self.after.records:
            if record.kind == "f" and record.content not in there:
                there.add(record.content)
                wanted.append(record)
        for number, record in enumerate(wanted, 1):
            self.say(f"comparing {number} of {len(wanted)}: {os.fsdecode(record.path)}")
            self._content(record, ancestors.of(record))
        plan = json.dumps([item.as_list() for item in self.plan], separators=(",", ":"))
        self.streams["plan"].add(plan.encode())
        self.say("compressing")
        for stream in self.streams.values():
            stream.pack()

    def _content(self, record: Record, base: int | None) -> None:
        data = self._read(self.new, record)
        recode = settings_of(data) if len(data) < _MAX_DIFFERENCE else None
        if base is not None and max(len(data), self.before.records[base].size) <= _MAX_DIFFERENCE:
            source = self._read(self.old, self.before.records[base])
            inside = None if recode is None else _opened(source, recode[0])
            if recode is not None and inside is not None:
                content, name = decode(recode[0], data, _MAX_DECODED), recode[0]
            else:
                recode, inside, content, name = None, source, data, ""
            parts = compared(inside, content)
            if _pays(*parts, data if recode is None else content):
                self.recoded += recode is not None
                self.differences += 1
                self._add(base, name, *parts, len(content), recode)
                return
        self._add(-1, "", [(0, len(data), 0)], b"", data, len(data), None)

    def _add(
        self,
        base: int,
        decoded: str,
        instructions: list[tuple[int, int, int]],
        difference: bytes,
        fresh: bytes,
        size: int,
        recode: Recoding | None,
    ) -> None:
        self.plan.append(PlanItem(base, decoded, len(instructions), size, recode))
        self.streams["add"].add(b"".join(coded(add) for add, _, _ in instructions))
        self.streams["take"].add(b"".join(coded(take) for _, take, _ in instructions))
        self.streams["move"].add(b"".join(coded_move(move) for _, _, move in instructions))
        self.streams["difference"].add(difference)
        self.streams["fresh"].add(fresh)

    @staticmethod
    def _read(root: Path, record: Record) -> bytes:
        with open(os.fsencode(root) + b"/" + record.path, "rb") as f:  # noqa: PTH123 - bytes
            return f.read()

    def write(self, output: Path) -> None:
        """Put header and streams together."""
        header = {
            "format": FORMAT,
            "from": self.before.digest().sha256,
            "to": self.after.digest().sha256,
            "contents": len(self.plan),
            "streams": {name: [s.packed, s.size] for name, s in self.streams.items()},
        }
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        with atomic_file(output) as f:
            f.write(MAGIC + struct.pack("<I", len(text)) + text)
            for name in STREAMS:
                packed = self.streams[name].file
                packed.seek(0)
                while part := packed.read(1 << 20):
                    f.write(part)

    def close(self) -> None:
        for stream in self.streams.values():
            stream.plain.close()
            stream.file.close()


def _opened(source: bytes, name: str) -> bytes | None:
    """Return what is inside an old file when it is compressed in the same way."""
    from tegu.errors import VerifyError

    try:
        return decode(name, source, _MAX_DECODED)
    except VerifyError:
        return None


def _pays(
    instructions: list[tuple[int, int, int]], difference: bytes, fresh: bytes, whole: bytes
) -> bool:
    """Whether the difference is smaller than the whole, by a quick compression of both."""
    parts = 3 * len(instructions)
    packed = parts + len(zlib.compress(difference, 1)) + len(zlib.compress(fresh, 1))
    return packed < len(zlib.compress(whole, 1))
