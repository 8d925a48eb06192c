"""Which old file a new one comes from: by path, or by name when a version is part of it."""

from __future__ import annotations

import re
from collections import defaultdict

from tegu.host.delta import Record, Table

__all__ = ["Ancestors"]

_NUMBERS = re.compile(rb"\d+")
_HASHES = re.compile(rb"(?<![0-9a-f])[0-9a-f]{12,}(?![0-9a-f])")


class Ancestors:
    """The files of an old tree, to be asked for the one that a new file comes from.

    usr/lib/modules/6.12.107/x.ko was usr/lib/modules/6.12.101/x.ko, libexpat.so.1.13.0 was
    libexpat.so.1.12.1: names that differ in numbers only are the same file in another version.
    """

    def __init__(self, old: Table) -> None:
        self._by_path: dict[bytes, int] = {}
        self._by_shape: defaultdict[bytes, list[int]] = defaultdict(list)
        self._by_name: defaultdict[bytes, list[int]] = defaultdict(list)
        self._records = old.records
        for number, record in enumerate(old.records):
            if record.kind == "f" and record.size:
                self._by_path[record.path] = number
                self._by_shape[_shape(record.path)].append(number)
                self._by_name[_shape(record.path.rpartition(b"/")[2])].append(number)

    def of(self, new: Record) -> int | None:
        """Return the number of the old record that `new` most likely comes from."""
        if (same := self._by_path.get(new.path)) is not None:
            return same
        name = _shape(new.path.rpartition(b"/")[2])
        for found in (self._by_shape.get(_shape(new.path)), self._by_name.get(name)):
            if found:
                return min(found, key=lambda n: self._distance(n, new))
        return None

    def _distance(self, number: int, new: Record) -> tuple[int, int]:
        record = self._records[number]
        common = sum(a == b for a, b in zip(record.path[::-1], new.path[::-1], strict=False))
        return abs(record.size - new.size), -common


def _shape(path: bytes) -> bytes:
    return _NUMBERS.sub(b"#", _HASHES.sub(b"#", path))
