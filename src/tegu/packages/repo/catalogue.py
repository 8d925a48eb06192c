"""What is in a repository, in SQLite: packages by content hash, and which channel has which.

A package stays known after it has left: its version must never come back with other content,
because clients may have the first one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import RepositoryError

__all__ = ["Catalogue", "Collection", "Item"]

_VERSION = 2
_SCHEMA = """
CREATE TABLE package (
    sha256 TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
    arch TEXT NOT NULL, source TEXT NOT NULL, size INTEGER NOT NULL, path TEXT NOT NULL UNIQUE,
    meta BLOB NOT NULL, pooled INTEGER NOT NULL, unused INTEGER,
    UNIQUE (kind, name, version, arch)
) WITHOUT ROWID;
CREATE TABLE collection (
    name TEXT PRIMARY KEY, origin TEXT, created INTEGER NOT NULL,
    digest TEXT, published INTEGER
) WITHOUT ROWID;
CREATE TABLE member (
    collection TEXT NOT NULL, sha256 TEXT NOT NULL REFERENCES package,
    percent INTEGER NOT NULL DEFAULT 100,
    PRIMARY KEY (collection, sha256)
) WITHOUT ROWID;
CREATE INDEX member_of ON member (sha256);
CREATE TABLE chunk (
    scope TEXT NOT NULL, key TEXT NOT NULL, gz BLOB NOT NULL, zst BLOB NOT NULL,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE TABLE replaced (path TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
"""
_FROM_1 = "ALTER TABLE member ADD COLUMN percent INTEGER NOT NULL DEFAULT 100;"
_ITEM = "p.sha256, p.kind, p.name, p.version, p.arch, p.source, p.size, p.path"


@dataclass(frozen=True, slots=True)
class Item:
    """A package file. `size` in bytes, `path` below `public/`, `meta` what the indexes say of it.

    `kind` is "deb" or "rpm". `meta` is empty where only the list is wanted.
    """

    sha256: str
    kind: str
    name: str
    version: str
    arch: str
    source: str
    size: int
    path: str
    meta: bytes = b""

    @property
    def shown(self) -> str:
        """The package as it is written in messages."""
        return f"{self.name} {self.version} ({self.arch})"


@dataclass(frozen=True, slots=True)
class Collection:
    """A channel (`origin` is None), or a snapshot of the channel `origin`.

    `created` and `published` are seconds since the epoch; `digest` is of what was published.
    """

    name: str
    origin: str | None
    created: int
    digest: str | None
    published: int | None


class Catalogue:
    """The open database. Reading may happen in any thread, writing in one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        try:
            # Autocommit: transactions are ours, in `change`.
            self._db = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {_VERSION};COMMIT;")
            elif version == 1:
                self._db.executescript(f"BEGIN;{_FROM_1}PRAGMA user_version = {_VERSION};COMMIT;")
            elif version != _VERSION:
                raise RepositoryError(f"{path}: written by another version of tegu ({version})")
        except sqlite3.Error as e:
            raise self.error(e) from e

    def error(self, e: sqlite3.Error) -> RepositoryError:
        """Return `e` in one line."""
        return RepositoryError(
            f"{self.path}: {e}", hint="is the disk full, or was the file damaged?"
        )

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Make all changes of the block one: all of them last, or none."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            raise self.error(e) from e

    def query(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        """Return all rows of a query."""
        try:
            with self._guard:
                return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise self.error(e) from e

    def run(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Execute `sql` once for each of `rows`."""
        try:
            with self._guard:
                self._db.executemany(sql, rows)
        except sqlite3.Error as e:
            raise self.error(e) from e

    # Packages

    def item(self, sha256: str) -> Item | None:
        """Return the package with this content, with its metadata, if it was ever here."""
        rows = self.query(f"SELECT {_ITEM}, p.meta FROM package p WHERE sha256 = ?", sha256)
        return Item(*rows[0]) if rows else None  # type: ignore[arg-type]

    def same_version(self, item: Item) -> Item | None:
        """Return what has the identity of `item`: kind, name, version and architecture."""
        rows = self.query(
            f"SELECT {_ITEM} FROM package p WHERE kind=? AND name=? AND version=? AND arch=?",
            *(item.kind, item.name, item.version, item.arch),
        )
        return Item(*rows[0]) if rows else None  # type: ignore[arg-type]

    def path_taken(self, path: str) -> bool:
        """Say whether a package has this path in the pool."""
        return bool(self.query("SELECT 1 FROM package WHERE path = ?", path))

    def put(self, items: Iterable[Item]) -> None:
        """Note that these are in the pool."""
        self.run(
            "INSERT INTO package VALUES (?,?,?,?,?,?,?,?,?,1,NULL) "
            "ON CONFLICT (sha256) DO UPDATE SET pooled = 1, unused = NULL",
            [
                (i.sha256, i.kind, i.name, i.version, i.arch, i.source, i.size, i.path, i.meta)
                for i in items
            ],
        )

    def pooled(self, sha256: str) -> bool:
        """Say whether the file is in the pool (and was not removed since)."""
        return bool(self.query("SELECT 1 FROM package WHERE sha256 = ? AND pooled", sha256))

    # Channels and snapshots

    def collections(self) -> list[Collection]:
        """Return channels and snapshots by name."""
        rows = self.query("SELECT name, origin, created, digest, published FROM collection")
        return [Collection(*row) for row in sorted(rows)]  # type: ignore[arg-type]

    def collection(self, name: str) -> Collection | None:
        """Return one of them."""
        return next((c for c in self.collections() if c.name == name), None)

    def create(self, name: str, origin: str | None, now: int) -> None:
        """Begin a channel or snapshot."""
        self.run("INSERT INTO collection VALUES (?,?,?,NULL,NULL)", [(name, origin, now)])

    def members(self, name: str, kind: str | None = None, *, meta: bool = False) -> list[Item]:
        """Return what a channel or snapshot has, by name, version (as text) and architecture."""
        columns = f"{_ITEM}, p.meta" if meta else _ITEM
        rows = self.query(
            f"SELECT {columns} FROM member m CROSS JOIN package p ON p.sha256 = m.sha256 "
            "WHERE m.collection = ? AND p.kind = coalesce(?, p.kind)",
            name,
            kind,
        )
        found = [Item(*row) for row in rows]  # type: ignore[arg-type]
        found.sort(key=lambda i: (i.name, i.version, i.arch, i.kind))
        return found

    def versions(self, name: str, kind: str, package: str) -> list[Item]:
        """Return all versions of a package that a channel has."""
        rows = self.query(
            f"SELECT {_ITEM} FROM package p CROSS JOIN member m ON m.sha256 = p.sha256 "
            "WHERE p.kind = ? AND p.name = ? AND m.collection = ?",
            *(kind, package, name),
        )
        return [Item(*row) for row in rows]  # type: ignore[arg-type]

    def enter(self, name: str, hashes: Iterable[str]) -> None:
        """Put packages into a channel."""
        self.run(
            "INSERT OR IGNORE INTO member (collection, sha256) VALUES (?,?)",
            [(name, h) for h in hashes],
        )

    def offer(self, name: str, hashes: Iterable[str], percent: int) -> None:
        """Let so many of a hundred machines have packages that a channel has."""
        self.run(
            "UPDATE member SET percent = ? WHERE collection = ? AND sha256 = ?",
            [(percent, name, h) for h in hashes],
        )

    def offered(self, name: str) -> dict[str, int]:
        """Return the packages of a channel that not all machines may have yet, with percents."""
        rows = self.query(
            "SELECT sha256, percent FROM member WHERE collection = ? AND percent < 100", name
        )
        return {str(sha256): int(str(percent)) for sha256, percent in rows}

    def leave(self, name: str, hashes: Iterable[str]) -> None:
        """Take packages out of a channel; they stay in the pool for now."""
        self.run(
            "DELETE FROM member WHERE collection = ? AND sha256 = ?", [(name, h) for h in hashes]
        )
