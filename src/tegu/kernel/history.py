"""An index of what commits say, in SQLite: each commit is read once, however often one asks."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import StoreError, UsageError
from tegu.kernel.gitrepo import Repo
from tegu.kernel.messages import Reference, parse_message

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["Commit", "History", "Pair"]

KIND = "kernel-history-2"
_SCHEMA = """
create table if not exists commits (
    id text primary key, parents text not null, subject text not null, author text not null,
    email text not null, time integer not null, upstream text, refs text not null
) without rowid
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
    upstream: str | None
    fixes: tuple[Reference, ...]
    reverts: tuple[Reference, ...]
    cves: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two histories of one repository: what each has that the other has not, newest first.

    `read` is how many commits had to be read because the index did not have them.
    """

    mainline_tip: str
    tree_tip: str
    mainline: list[Commit]
    tree: list[Commit]
    read: int


class History:
    """The index of one repository, kept in the store; safe with concurrent users."""

    def __init__(self, repo: Repo, store: Store) -> None:
        self.repo = repo
        self.store = store
        key = hashlib.sha256(str(repo.common).encode()).hexdigest()[:24]
        self._path: Path = store.small(KIND, f"{key}.sqlite")

    def pair(
        self, mainline: str, tree: str, progress: Callable[[int, int], None] | None = None
    ) -> Pair:
        """Return what `mainline` and `tree` (branches, tags, ids) do not share.

        `progress(done, all)` is called while new commits are read.
        """
        tips = self.repo.commit(mainline), self.repo.commit(tree)
        self._check_related(*tips)
        ours = self.repo.only_in(tips[0], tips[1])
        theirs = self.repo.only_in(tips[1], tips[0])
        with self.store.shared(), self._open() as db:
            known = {row[0] for row in db.execute("select id from commits")}
            new = [i for i in dict.fromkeys([*ours, *theirs]) if i not in known]
            self._index(db, new, progress)
            wanted = {*ours, *theirs}
            found = {c.id: c for c in _load(db) if c.id in wanted}
        return Pair(*tips, [found[i] for i in ours], [found[i] for i in theirs], len(new))

    def _check_related(self, mainline: str, tree: str) -> None:
        """Refuse histories that cannot be compared: they would look as if nothing was missing."""
        shallow = self.repo.git("rev-parse", "--is-shallow-repository").stdout.strip()
        if shallow == "true":
            raise UsageError(
                f"{self.repo.path}: the history is cut short (a shallow clone)",
                hint="git fetch --unshallow",
            )
        if self.repo.git("merge-base", mainline, tree, check=False).returncode != 0:
            raise UsageError(
                f"{self.repo.path}: {mainline[:12]} and {tree[:12]} have no commit in common",
                hint="name a tree that was branched from mainline",
            )

    def _index(
        self,
        db: sqlite3.Connection,
        ids: list[str],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        rows = []
        for number, raw in enumerate(self.repo.read(ids) if ids else (), 1):
            facts = parse_message(raw.message)
            refs = {
                "fixes": [[r.id, r.subject] for r in facts.fixes],
                "reverts": [[r.id, r.subject] for r in facts.reverts],
                "cves": list(facts.cves),
            }
            said = json.dumps({k: v for k, v in refs.items() if v})
            rows.append(
                (raw.id, " ".join(raw.parents), facts.subject, raw.author, raw.email, raw.time,
                 facts.upstream, said)
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
                db.execute(_SCHEMA)
                with db:
                    yield db
            finally:
                db.close()
        except sqlite3.DatabaseError as e:
            raise StoreError(
                f"the index {self._path}: {e}", hint="remove it; it can be made again"
            ) from e


def _insert(db: sqlite3.Connection, rows: Iterable[tuple[object, ...]]) -> None:
    db.executemany("insert or replace into commits values (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _load(db: sqlite3.Connection) -> Iterator[Commit]:
    for row in db.execute("select * from commits"):
        said = json.loads(row[7])
        yield Commit(
            id=row[0],
            parents=tuple(row[1].split()),
            subject=row[2],
            author=row[3],
            email=row[4],
            time=row[5],
            upstream=row[6],
            fixes=tuple(Reference(*r) for r in said.get("fixes", ())),
            reverts=tuple(Reference(*r) for r in said.get("reverts", ())),
            cves=tuple(said.get("cves", ())),
        )
