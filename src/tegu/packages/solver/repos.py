"""Packages files as libsolv repositories, each read once and then kept in libsolv's own form.

Beside `KEY.Packages` lie three files made from it: `KEY.solv` (libsolv's), `KEY.offsets` (where
each stanza starts: 64-bit, in the order of the solvables) and `KEY.facts` (JSON: which packages are
essential, which have a priority above optional, and the digest of the other two). They are made
again when one is missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import solv

__all__ = ["Repositories", "Repository"]

_FIELDS = re.compile(
    r"^(Package|Version|Architecture|Size|SHA256|Filename|Source|Section|Priority|Essential"
    r"|Installed-Size|Depends|Pre-Depends|Recommends): *(.*)$",
    re.MULTILINE,
)
_RANK = {b"required": 0, b"important": 1, b"standard": 2}
_PACKAGE = re.compile(rb"^Package: *(\S+)", re.MULTILINE)


class Repository:
    """One Packages file in the pool: its id, its priority, and its solvables from `start` on."""

    def __init__(self, pool: Any, description: dict[str, Any], start: int) -> None:
        self.id: str = description["id"]
        self.priority: int = description["priority"]
        self.base: bool = description["base"]
        self.path = Path(description["packages"])
        self.start = start
        self.solv = pool.add_repo(self.id)
        if not self._restore():
            self._make()
        self.count: int = self.solv.nsolvables
        self._file = self.path.open("rb")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_suffix(suffix)

    def _restore(self) -> bool:
        try:
            facts = json.loads(self._beside(".facts").read_bytes())
            offsets = array("Q")
            offsets.frombytes(self._beside(".offsets").read_bytes())
            if facts["format"] != 2 or len(offsets) != facts["count"] + 1:
                return False
            # libsolv trusts what it reads: a damaged file would crash it, or change its answer.
            if _digest(self._beside(".solv"), self._beside(".offsets")) != facts["digest"]:
                return False
            if offsets[-1] != self.path.stat().st_size:
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        handle = solv.xfopen(str(self._beside(".solv")), "r")
        if handle is None or not self.solv.add_solv(handle):
            self.solv.empty()
            return False
        if self.solv.nsolvables != facts["count"]:
            self.solv.empty()
            return False
        self.offsets, self.facts = offsets, facts
        return True

    def _make(self) -> None:
        data = self.path.read_bytes()
        handle = solv.xfopen(str(self.path), "r")
        if not self.solv.add_debpackages(handle):
            raise ValueError(f"{self.path.name} is no Packages file: {self.solv.pool.errstr}")
        handle.close()
        offsets = _offsets(data)
        if len(offsets) - 1 != self.solv.nsolvables:
            raise ValueError(
                f"{self.path.name} has {len(offsets) - 1} stanzas, "
                f"libsolv reads {self.solv.nsolvables}"
            )
        essential, ranks = _facts(data, offsets)
        self.offsets = offsets
        self.facts = {
            "format": 2,
            "count": len(offsets) - 1,
            "essential": sorted(essential),
            "ranks": ranks,
        }
        self._write(".offsets", offsets.tobytes())
        self._write(".solv", None)
        try:
            self.facts["digest"] = _digest(self._beside(".solv"), self._beside(".offsets"))
        except OSError:
            return
        self._write(".facts", json.dumps(self.facts, sort_keys=True).encode())

    def _write(self, suffix: str, content: bytes | None) -> None:
        """Write a file beside the index, whole or not at all; None stands for libsolv's own form.

        A store that cannot be written to (full, read-only) only costs the next run its time.
        """
        target = self._beside(suffix)
        try:
            fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        except OSError:
            return
        try:
            with os.fdopen(fd, "wb") as f:
                if content is None:
                    # A FILE of libsolv's own, so that the C library's buffer is flushed by close.
                    handle = solv.xfopen(temporary, "w")
                    written = self.solv.write(handle) and handle.close() != -1
                else:
                    f.write(content)
                    f.flush()
                    written = True
                os.fsync(f.fileno())
            if written:
                os.rename(temporary, target)  # noqa: PTH104 - a name from mkstemp
                return
        except OSError:
            pass
        os.unlink(temporary)  # noqa: PTH108

    def stanza(self, solvable_id: int) -> dict[str, str]:
        """Return the fields of a package's stanza that a lock or a choice needs."""
        number = solvable_id - self.start
        begin, end = self.offsets[number], self.offsets[number + 1]
        text = os.pread(self._file.fileno(), end - begin, begin).decode(errors="replace")
        return dict(_FIELDS.findall(text.replace("\n ", " ")))


class Repositories:
    """All repositories of a solve, in one pool."""

    def __init__(self, architecture: str, descriptions: Iterable[dict[str, Any]]) -> None:
        self.pool = solv.Pool()
        self.pool.setdisttype(solv.Pool.DISTTYPE_DEB)
        self.pool.setarch(architecture)
        self.all: list[Repository] = []
        start = 2  # libsolv keeps the first two ids to itself
        for description in descriptions:
            repository = Repository(self.pool, description, start)
            start += repository.count
            self.all.append(repository)
        self._starts = [r.start for r in self.all]
        self.pool.createwhatprovides()
        self._named: dict[str, list[Any]] = {}
        self._disabled: set[int] = set()
        self._stanzas: dict[int, dict[str, str]] = {}

    def of(self, solvable_id: int) -> Repository:
        """Return the repository that holds a solvable."""
        return self.all[bisect_right(self._starts, solvable_id) - 1]

    def stanza(self, solvable_id: int) -> dict[str, str]:
        """Return the wanted fields of a solvable's stanza (kept once read)."""
        found = self._stanzas.get(solvable_id)
        if found is None:
            found = self._stanzas[solvable_id] = self.of(solvable_id).stanza(solvable_id)
        return found

    def named(self, name: str) -> list[Any]:
        """Return all solvables called `name`, of whatever version and repository."""
        if name not in self._named:
            number = self.pool.str2id(name, False)
            found = []
            if number:
                self.restrict(set())  # libsolv does not find what is disabled
                job = self.pool.Job(solv.Job.SOLVER_SOLVABLE_NAME, number)
                found = [s for s in job.solvables() if s.nameid == number]
            self._named[name] = found
        return self._named[name]

    def restrict(self, disabled: set[int]) -> None:
        """Hide the solvables `disabled` from the solver, and show all others."""
        if disabled != self._disabled:
            self.pool.set_disabled_list(sorted(disabled))
            self.pool.createwhatprovides()
            self._disabled = disabled

    def essential(self) -> set[str]:
        """Return the names of the base's packages that say `Essential: yes`."""
        return {name for r in self.all if r.base for name in r.facts["essential"]}

    def ranks(self) -> dict[str, int]:
        """Return the priorities above optional: 0 required, 1 important, 2 standard."""
        found: dict[str, int] = {}
        for repository in self.all:
            if repository.base:
                found.update(repository.facts["ranks"])
        return found


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _offsets(data: bytes) -> array[int]:
    """Return where each stanza starts, and the end of the data."""
    offsets = array("Q")
    position, end = 0, len(data)
    while position < end:
        if data[position] == 0x0A:
            position += 1
            continue
        offsets.append(position)
        stop = data.find(b"\n\n", position)
        position = end if stop < 0 else stop + 2
    offsets.append(end)
    return offsets


def _facts(data: bytes, offsets: array[int]) -> tuple[set[str], dict[str, int]]:
    def owner(position: int) -> str:
        start = offsets[bisect_right(offsets, position) - 1]
        match = _PACKAGE.search(data, start)
        return match[1].decode() if match else ""

    essential = {owner(m.start() + 1) for m in re.finditer(rb"\nEssential: *yes\n", data)}
    ranks = {
        owner(m.start() + 1): _RANK[m[1]]
        for m in re.finditer(rb"\nPriority: *(required|important|standard)\n", data)
    }
    return essential, ranks
