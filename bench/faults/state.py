"""What a run has done so far, kept in the store: a run that is broken off goes on where it was.

A row counts again only while everything that made it is as it was: its script, its entry in
faults.toml, what all scripts share, the rules and the remedies. Whatever else changes, a whole run
of the bench does the affected rows anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tegu import heal
from tegu.definition.shipped import shipped_definition
from tegu.files import write_atomic
from tegu.store import Store

__all__ = ["Progress", "made_of"]

HERE = Path(__file__).parent
_NOT_ASKED = {"agent", "closer", "exporter", "history", "metrics", "otlp", "report", "state"}
"""Modules of heal that no fault goes through: the resident doctor, and what shows findings."""

Row = dict[str, Any]


class Progress:
    """The rows done so far, by name; `keep` writes each through at once."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Store.default().root / "bench/faults.json"
        try:
            read = json.loads(self.path.read_text())
        except (OSError, ValueError):
            read = {}
        self._rows: dict[str, Row] = read if isinstance(read, dict) else {}
        self.older: list[float] = []
        """When the rows that were taken over from earlier runs were made."""

    def done(self, name: str, made_of: str) -> Row | None:
        """Return the row that an earlier run made, if all that made it is still the same."""
        found = self._rows.get(name)
        if not isinstance(found, dict) or found.get("made_of") != made_of:
            return None
        self.older.append(float(found["time"]))
        row: Row = found["row"]
        return row

    def keep(self, name: str, made_of: str, row: Row) -> None:
        """Write a row through to the disk."""
        self._rows[name] = {"made_of": made_of, "time": time.time(), "row": row}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self._rows, indent=1))

    def note(self) -> str:
        """Say which rows are of earlier runs."""
        if not self.older:
            return ""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(self.older)))
        return (
            f"{len(self.older)} rows were made by earlier runs that were broken off or mended, the"
            f" oldest at {when}, from the same scripts and rules; the others by this run."
        )


def made_of(kind: str, name: str, about: Row) -> str:
    """Return a digest of all that makes a row: `kind` is "fault" or "twin"."""
    room = Path(heal.__file__).parent
    rules = [room / f"rules/{about['rule']}.py"] if "rule" in about else room.glob("rules/*.py")
    files = [
        HERE / f"guest/{kind}s/{name}.sh",
        HERE / "guest/lib.sh",
        HERE / "guest/drive.py",
        shipped_definition(),
        *(p for p in room.glob("*.py") if p.stem not in _NOT_ASKED),
        *rules,
        *(room.glob("remedies/*.py") if about.get("heal") else ()),
    ]
    return _digest(files, json.dumps(about, sort_keys=True))


def _digest(files: Iterable[Path], more: str) -> str:
    found = hashlib.sha256(more.encode())
    # By name: where the files lie says nothing.
    for path in sorted(files, key=lambda p: (p.parent.name, p.name)):
        found.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
