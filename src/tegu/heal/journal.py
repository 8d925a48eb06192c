"""A journal of repairs: what was about to be done, with how to undo it, and what came of it.

One JSON object to a line, written through to the disk before anything is done. A line that was cut
off by a crash is passed over.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import TeguError

__all__ = ["JOURNAL", "Entry", "Journal"]

JOURNAL = Path("/var/lib/tegu/heal/journal.jsonl")
_MOST = 4 << 20
"""Bytes: then the older half is dropped."""


@dataclass(frozen=True)
class Entry:
    """A repair: `outcome` is "begun", or what became of it."""

    id: str
    time: float
    finding: dict[str, Any]
    remedy: str
    plan: list[str]
    state: dict[str, Any]
    outcome: str
    detail: str = ""


class Journal:
    """The journal in a file; one repair at a time has it."""

    def __init__(self, path: Path = JOURNAL) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from repairing meanwhile; raises TeguError when one is at it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                raise TeguError("another `tegu heal` is at work") from e
            yield

    def add(self, entry: Entry) -> None:
        """Write an entry through to the disk; raises OSError, for one that is full say."""
        line = json.dumps(entry.__dict__, separators=(",", ":"), default=str).encode() + b"\n"
        self._shrink(len(line))
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            start = os.fstat(fd).st_size
            if os.write(fd, line) != len(line):
                os.ftruncate(fd, start)
                raise OSError(28, os.strerror(28), str(self.path))
            os.fsync(fd)
        finally:
            os.close(fd)

    def entries(self) -> list[Entry]:
        """Return each repair once, as it stands now, the oldest first."""
        found: dict[str, Entry] = {}
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return []
        for line in lines:
            try:
                value = json.loads(line)
                found[value["id"]] = Entry(**value)
            except (ValueError, TypeError, KeyError):
                continue
        return list(found.values())

    def recent(self, seconds: float) -> list[Entry]:
        """Return the repairs of the last so many seconds."""
        oldest = time.time() - seconds
        return [e for e in self.entries() if e.time >= oldest]

    def _shrink(self, more: int) -> None:
        try:
            if self.path.stat().st_size + more <= _MOST:
                return
        except OSError:
            return
        from tegu.files import write_atomic

        lines = self.path.read_bytes().splitlines(keepends=True)
        write_atomic(self.path, b"".join(lines[len(lines) // 2 :]), mode=0o600)
