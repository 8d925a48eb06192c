"""An index of what commits say, in SQLite: each commit is read once, however often one asks."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import StoreError, UsageError
from tegu.kernel.gitrepo import Repo
from tegu.kernel.messages import Reference, parse_message

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["Commit", "History", "Pair"]

KIND = "kernel-history-3"
_SCHEMA = """
create table if not exists commits (
    id text primary key, parents text not null, subject text not null, author text not null,
    email text not null, time integer not null, committed integer not null,
    upstream text not null, refs text not null
) without rowid;
create table if not exists shared_reverts (
    base text primary key, reverts text not null
) without rowid;
create table if not exists shared_subjects (
    base text, subject text, ids text not null, primary key (base, subject)
) without rowid;
"""
_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit and what its message says (see `tegu.kernel.messages`)."""

    id: str
    parents: tuple[str, ...]
    subject: str
    author: str
    email: str
    time: int
    committed: int
    upstream: tuple[str, ...]
    fixes: tuple[Reference, ...]
    reverts: tuple[Reference, ...]
    cves: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two histories of one repository: what each has that the other has not, newest first.

    `parted` is when the newest commit that both have was made, in seconds since the epoch.
    `shared_reverts` are the reverts in what both have, newest first, and `shared(subjects)` finds
    commits there by their subject. `read` is how many commits had to be read because the index did
    not have them.
    """

    mainline_tip: str
    tree_tip: str
    mainline: list[Commit]
    tree: list[Commit]
    parted: int
    shared_reverts: list[Commit]
    read: int
    shared: Callable[[set[str]], dict[str, list[str]]] = field(compare=False, repr=False)


class History:
    """The index of one repository, kept in the store; safe with concurrent users.

    `footers`: see `parse_message`; each choice of them has an index of its own.
    """

    def __init__(self, repo: Repo, store: Store, footers: Sequence[str] = ()) -> None:
        self.repo = repo
        self._store = store
        self._footers = tuple(dict.fromkeys(f.strip() for f in footers if f.strip()))
        name = "\0".join([str(repo.common), *sorted(self._footers)])
        key = hashlib.sha256(name.encode()).hexdigest()[:24]
        self._path: Path = store.small(KIND, f"{key}.sqlite")

    def pair(
        self, mainline: str, tree: str, progress: Callable[[int, int], None] | None = None
    ) -> Pair:
        """Return what `mainline` and `tree` (branches, tags, ids) do not share.

        `progress(done, all)` is called while new commits are read.
        """
        tips = self.repo.commit(mainline), self.repo.commit(tree)
        bases = self._bases(*tips)
        ours = self.repo.only_in(tips[0], tips[1])
        theirs = self.repo.only_in(tips[1], tips[0])
        with self._store.shared(), self._open() as db:
            mentions = self._mentions(db, bases)
            known = {row[0] for row in db.execute("select id from commits")}
            new = [i for i in dict.fromkeys([*ours, *theirs, *mentions]) if i not in known]
            self._index(db, new, progress)
            wanted = {*ours, *theirs, *mentions}
            found = {c.id: c for c in _load(db) if c.id in wanted}
        return Pair(
            *tips,
            [found[i] for i in ours],
            [found[i] for i in theirs],
            max(base.committed for base in self.repo.read(bases)),
            [found[i] for i in mentions if found[i].reverts],
            len(new),
            lambda subjects: self._by_subject(bases, subjects),
        )

    def _bases(self, mainline: str, tree: str) -> list[str]:
        """Refuse histories that cannot be compared: they would look as if nothing was missing."""
        shallow = self.repo.git("rev-parse", "--is-shallow-repository").stdout.strip()
        if shallow == "true":
            raise UsageError(
                f"{self.repo.path}: the history is cut short (a shallow clone)",
                hint="git fetch --unshallow",
            )
        bases = self.repo.bases(mainline, tree)
        if not bases:
            raise UsageError(
                f"{self.repo.path}: {mainline[:12]} and {tree[:12]} have no commit in common",
                hint="name a tree that was branched from mainline",
            )
        return bases

    def _mentions(self, db: sqlite3.Connection, bases: list[str]) -> list[str]:
        """Return the shared commits that speak of a revert, newest first; looked for once.

        A base that came later than one that was looked at costs only what lies between.
        """
        key = " ".join(bases)
        rows = dict(db.execute("select base, reverts from shared_reverts"))
        if key not in rows:
            older = next(
                (k for k in rows if all(self.repo.is_ancestor(b, bases[0]) for b in k.split())),
                "",
            )
            new = self.repo.mentioning("revert", bases, older.split())
            rows[key] = " ".join([*new, *rows.get(older, "").split()])
            db.execute("insert or replace into shared_reverts values (?, ?)", (key, rows[key]))
        found: list[str] = rows[key].split()
        return found

    def _by_subject(self, bases: list[str], subjects: set[str]) -> dict[str, list[str]]:
        """Return the shared commits with one of `subjects`, by subject; looked for once."""
        key = " ".join(bases)
        with self._store.shared(), self._open() as db:
            asked = "select subject, ids from shared_subjects where base = ?"
            known = {s: ids.split() for s, ids in db.execute(asked, (key,))}
            new = subjects - known.keys()
            if new:
                found = self.repo.with_subjects(new, bases)
                rows = [(key, s, " ".join(ids)) for s, ids in found.items()]
                db.executemany("insert or replace into shared_subjects values (?, ?, ?)", rows)
                known.update(found)
        return {s: known[s] for s in subjects}

    def _index(
        self,
        db: sqlite3.Connection,
        ids: list[str],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        rows = []
        for number, raw in enumerate(self.repo.read(ids) if ids else (), 1):
            facts = parse_message(raw.message, self._footers)
            refs = {
                "fixes": [[r.id, r.subject] for r in facts.fixes],
                "reverts": [[r.id, r.subject] for r in facts.reverts],
                "cves": list(facts.cves),
            }
            said = json.dumps({k: v for k, v in refs.items() if v})
            rows.append(
                (raw.id, " ".join(raw.parents), facts.subject, raw.author, raw.email, raw.time,
                 raw.committed, " ".join(facts.upstream), said)
            )  # fmt: skip
            if len(rows) == _BATCH:
                _insert(db, rows)
                rows.clear()
                if progress is not None:
                    progress(number, len(ids))
        _insert(db, rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self._path, timeout=600)
            try:
                db.execute("pragma journal_mode = wal")
                db.executescript(_SCHEMA)
                with db:
                    yield db
            finally:
                db.close()
        except sqlite3.DatabaseError as e:
            raise StoreError(
                f"the index {self._path}: {e}", hint="remove it; it can be made again"
            ) from e


def _insert(db: sqlite3.Connection, rows: Iterable[tuple[object, ...]]) -> None:
    db.executemany("insert or replace into commits values (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _load(db: sqlite3.Connection) -> Iterator[Commit]:
    for row in db.execute("select * from commits"):
        said = json.loads(row[8])
        yield Commit(
            id=row[0],
            parents=tuple(row[1].split()),
            subject=row[2],
            author=row[3],
            email=row[4],
            time=row[5],
            committed=row[6],
            upstream=tuple(row[7].split()),
            fixes=tuple(Reference(*r) for r in said.get("fixes", ())),
            reverts=tuple(Reference(*r) for r in said.get("reverts", ())),
            cves=tuple(said.get("cves", ())),
        )
