"""Recordings: one JSON object to a line, from a `header` to an `end`.

The same lines are what `--json` streams. A recording without its `end` was cut off, and is refused
rather than taken for the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tegu.errors import ProbeError

__all__ = ["FORMAT", "Record", "Recording", "encode", "parse", "read"]

FORMAT = 1
"""Of the recordings that this program writes; it reads those up to it."""

Record = dict[str, Any]
"""A line: `type` is "header", "event", "summary" or "end"; the rest is the tool's."""

_LONGEST = 1 << 24


@dataclass
class Recording:
    """What a probe saw: who, when and where; single events; sums."""

    header: Record
    events: list[Record] = field(default_factory=list)
    summary: Record = field(default_factory=dict)
    end: Record = field(default_factory=dict)

    @property
    def tool(self) -> str:
        """Which probe it was."""
        return str(self.header["tool"])

    @property
    def lost(self) -> int:
        """How many events could not be kept."""
        return int(self.end.get("lost", 0))

    @property
    def seconds(self) -> float:
        """How long it looked."""
        return float(self.end.get("seconds", 0))


def encode(record: Record) -> bytes:
    """Return one line."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read(path: Path) -> Recording:
    """Read a recording; raises ProbeError naming the file, the line and what is wrong there."""
    try:
        with path.open("rb") as lines:
            return parse(lines, str(path))
    except OSError as e:
        raise ProbeError(f"cannot read {path}: {e.strerror}") from e


def parse(lines: Iterable[bytes], name: str) -> Recording:
    """Put the lines of the recording `name` together; raises ProbeError."""
    found: Recording | None = None
    number = 0
    for number, record in _records(lines, name):
        kind = record["type"]
        if found is None:
            found = Recording(_header(record, name))
        elif found.end:
            raise ProbeError(f"{name}:{number}: there is more after the recording's end")
        elif kind == "event":
            found.events.append(record)
        elif kind == "summary":
            found.summary = record
        elif kind == "end":
            found.end = _end(record, name, number)
        else:
            raise ProbeError(f"{name}:{number}: unknown record {kind[:40]!r}")
    if found is None:
        raise ProbeError(f"{name} is empty: not a recording")
    if not found.end:
        raise ProbeError(
            f"{name} is cut off after line {number}", hint="its recording did not end; record again"
        )
    return found


def _records(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            raise ProbeError(
                f"{name} is cut off in line {number}",
                hint="its recording did not end; record again",
            )
        try:
            if len(line) > _LONGEST:
                raise ValueError("too long")
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ProbeError(f"{name}:{number}: not a line of a recording") from e
        if not isinstance(record, dict) or not isinstance(record.get("type"), str):
            raise ProbeError(f"{name}:{number}: not a line of a recording")
        yield number, record


def _header(record: Record, name: str) -> Record:
    if record["type"] != "header" or not isinstance(record.get("tool"), str):
        raise ProbeError(f"{name} is not a recording: it does not start with a header")
    version = record.get("tegu_probe")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ProbeError(f"{name} is not a recording: its header has no version")
    if version > FORMAT:
        raise ProbeError(
            f"{name} is a recording of format {version}; this tegu reads up to {FORMAT}"
        )
    return record


def _end(record: Record, name: str, number: int) -> Record:
    for key in ("lost", "seconds"):
        value = record.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ProbeError(f"{name}:{number}: the end says nothing of {key}")
    return record
