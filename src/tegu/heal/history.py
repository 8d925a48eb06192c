"""What was found when, in SQLite, bounded in size: `tegu agent history`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import TeguError
from tegu.heal.doctor import score
from tegu.heal.finding import Finding

__all__ = ["HISTORY", "Change", "History"]

HISTORY = Path("/var/lib/tegu/heal/history.sqlite")
_MOST_FINDINGS = 5_000
_MOST_SCORES = 50_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS findings (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, began REAL NOT NULL, ended REAL,
    severity TEXT NOT NULL, title TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS open_findings ON findings (key) WHERE ended IS NULL;
CREATE TABLE IF NOT EXISTS scores (time REAL PRIMARY KEY, score INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Change:
    """A finding that came or went."""

    key: str
    what: str
    """"began" or "ended"."""
    title: str
    severity: str


class History:
    """The database; raises TeguError when it cannot be opened, read or written."""

    def __init__(self, path: Path = HISTORY, *, create: bool = True) -> None:
        self.path = path
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not path.exists():
                raise TeguError(
                    f"there is no history at {path}",
                    hint="tegu agent on",
                )
            self._base = sqlite3.connect(path, timeout=5, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as e:
            raise self._error(e) from e

    def close(self) -> None:
        """Close it."""
        self._base.close()

    def note(self, now: float, findings: Iterable[Finding]) -> list[Change]:
        """Keep what there is now; returns what came and what went. All of it, or nothing."""
        found = {f.key: f for f in findings}
        changes = []
        try:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                rows = self._base.execute(
                    "SELECT number, key, title, severity FROM findings WHERE ended IS NULL"
                ).fetchall()
                for number, key, title, severity in rows:
                    if key not in found:
                        self._base.execute(
                            "UPDATE findings SET ended = ? WHERE number = ?", (now, number)
                        )
                        changes.append(Change(key, "ended", title, severity))
                known = {row[1] for row in rows}
                for key, finding in found.items():
                    if key not in known:
                        body = json.dumps(finding.to_json(), default=str)
                        self._base.execute(
                            "INSERT INTO findings (key, began, severity, title, body)"
                            " VALUES (?, ?, ?, ?, ?)",
                            (key, now, finding.severity, finding.title, body),
                        )
                        changes.append(Change(key, "began", finding.title, finding.severity))
                self._base.execute(
                    "INSERT OR REPLACE INTO scores VALUES (?, ?)", (now, score(found.values()))
                )
                self._bound()
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
        except sqlite3.Error as e:
            raise self._error(e) from e
        return changes

    def _bound(self) -> None:
        self._base.execute(
            "DELETE FROM findings WHERE number <= (SELECT max(number) FROM findings) - ?"
            " AND ended IS NOT NULL",
            (_MOST_FINDINGS,),
        )
        self._base.execute(
            "DELETE FROM scores WHERE rowid <= (SELECT max(rowid) FROM scores) - ?",
            (_MOST_SCORES,),
        )

    def findings(self, most: int = 100) -> list[dict[str, Any]]:
        """Return the last findings, the newest first; `ended` is None while they last."""
        try:
            rows = self._base.execute(
                "SELECT key, began, ended, severity, title, body FROM findings"
                " ORDER BY number DESC LIMIT ?",
                (most,),
            ).fetchall()
            return [
                {
                    "key": key,
                    "began": began,
                    "ended": ended,
                    "severity": severity,
                    "title": title,
                    "finding": json.loads(body),
                }
                for key, began, ended, severity, title, body in rows
            ]
        except (sqlite3.Error, ValueError) as e:
            raise self._error(e) from e

    def scores(self, since: float) -> list[tuple[float, int]]:
        """Return health by time."""
        try:
            return self._base.execute(
                "SELECT time, score FROM scores WHERE time >= ? ORDER BY time", (since,)
            ).fetchall()
        except sqlite3.Error as e:
            raise self._error(e) from e

    def _error(self, e: Exception) -> TeguError:
        return TeguError(f"{self.path}: {e}", hint="a damaged history may be removed")
