"""A git repository, read in bulk: which commits there are between two points, and what they say."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tegu.errors import UsageError
from tegu.process import CommandError, Completed, require, run

__all__ = ["RawCommit", "Repo"]

_HOUR = 3600
# git(1): these say where the repository, its objects, its index and its work tree are.
_ELSEWHERE = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CEILING_DIRECTORIES",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
}
_ZONE = re.compile(rb" ([+-][0-9]{4})$")


@dataclass(frozen=True, slots=True)
class RawCommit:
    """A commit object: `time` is the author's, in seconds since the epoch, `zone` as "+0100".

    `committed` is when this very commit was made, in seconds since the epoch.
    """

    id: str
    parents: tuple[str, ...]
    author: str
    email: str
    time: int
    message: str
    zone: str
    committed: int


class Repo:
    """A git repository at `path`; UsageError when there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require("git", package="git")
        if not path.is_dir():
            raise UsageError(f"{path} is not a directory")
        done = self.git("rev-parse", "--git-common-dir", check=False)
        if done.returncode != 0:
            raise UsageError(f"{path} is not a git repository")
        self.common = (path / done.stdout.strip()).resolve()

    def git(
        self,
        *arguments: str,
        check: bool = True,
        stdin: str | None = None,
        stdout: IO[bytes] | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Completed:
        """Run git; the user's configuration of colours, pagers and hooks does not matter.

        Neither does an environment that names another repository, as git's own hooks have it.
        """
        surroundings = {k: v for k, v in os.environ.items() if k not in _ELSEWHERE}
        return run(
            ["git", "-c", "core.hooksPath=/dev/null", *arguments],
            cwd=cwd or self.path,
            check=check,
            stdin=stdin,
            stdout=stdout,
            timeout=_HOUR,
            env={**surroundings, "LC_ALL": "C", "GIT_PAGER": "cat", **(env or {})},
        )

    def commit(self, name: str) -> str:
        """Return the id of the commit that `name` means; UsageError when there is none."""
        done = self.git(
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"{name}^{{commit}}",
            check=False,
        )
        if done.returncode != 0:
            raise UsageError(
                f"{self.path}: there is no commit {name}",
                hint="name a branch, a tag or an id; `git fetch` the remote first?",
            )
        return done.stdout.strip()

    def only_in(self, one: str, other: str) -> list[str]:
        """Return the commits that `one` has and `other` has not, children before parents."""
        done = self.git("rev-list", "--topo-order", one, f"^{other}", "--")
        return done.stdout.split()

    def read(self, ids: Iterable[str]) -> Iterator[RawCommit]:
        """Yield the commits of `ids`, in their order."""
        with tempfile.TemporaryFile() as out:
            self.git("cat-file", "--batch", "--buffer", stdin="\n".join(ids) + "\n", stdout=out)
            out.seek(0)
            while head := out.readline():
                words = head.split()
                if len(words) != 3 or words[1] != b"commit":
                    raise UsageError(f"{self.path}: {head.decode().strip()}: not a commit")
                body = out.read(int(words[2]))
                out.read(1)
                yield _parse(words[0].decode(), body)

    def full_ids(self, names: Iterable[str]) -> dict[str, str]:
        """Return the full ids of commits, by the (short) ids in `names`; unknown ones are left out.

        A short id that could be several is left out as well.
        """
        asked = list(dict.fromkeys(names))
        if not asked:
            return {}
        done = self.git(
            "cat-file",
            "--batch-check=%(objectname) %(objecttype)",
            # So that a file with the same first digits does not make it ambiguous.
            stdin="".join(f"{name}^{{commit}}\n" for name in asked),
        )
        found = {}
        for name, line in zip(asked, done.stdout.splitlines(), strict=False):
            words = line.split()
            if len(words) == 2 and words[1] == "commit":
                found[name] = words[0]
        return found

    def bases(self, one: str, other: str) -> list[str]:
        """Return the newest commits that both lead to (git-merge-base(1)); none: unrelated."""
        done = self.git("merge-base", "--all", one, other, check=False)
        return sorted(done.stdout.split()) if done.returncode == 0 else []

    def is_ancestor(self, old: str, new: str) -> bool:
        """Say whether `new` leads to `old`."""
        return self.git("merge-base", "--is-ancestor", old, new, check=False).returncode == 0

    def mentioning(self, word: str, tips: Iterable[str], without: Iterable[str] = ()) -> list[str]:
        """Return the commits below `tips`, not below `without`, whose message has `word`.

        Merges are left out; children come before parents.
        """
        done = self.git(
            "rev-list", "--topo-order", "--no-merges", "-i", "-F", f"--grep={word}",
            *tips, *(f"^{i}" for i in without), "--",
        )  # fmt: skip
        return done.stdout.split()

    def with_subjects(self, subjects: set[str], tips: Iterable[str]) -> dict[str, list[str]]:
        """Return the commits below `tips` that have one of `subjects`, by subject."""
        found: dict[str, list[str]] = {s: [] for s in subjects}
        with tempfile.TemporaryFile() as out:
            self.git("log", "--no-color", "--no-decorate", "--format=%H %s", *tips, stdout=out)
            out.seek(0)
            for line in out:
                name, _, subject = line.decode(errors="replace").rstrip("\n").partition(" ")
                if subject.strip() in found:
                    found[subject.strip()].append(name)
        return found

    def merges(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """Return those of `ids` that are merges, each with the commits that it brought in."""
        asked = sorted(set(ids))
        if not asked:
            return {}
        text = "\n".join(asked) + "\n"
        done = self.git("rev-list", "--no-walk", "--merges", "--stdin", stdin=text)
        return {m: set(self.only_in(m, f"{m}^1")) for m in done.stdout.split()}

    def has_file(self, commit: str, path: str) -> bool:
        """Say whether there is a file `path` in `commit`."""
        return self.git("cat-file", "-e", f"{commit}:{path}", check=False).returncode == 0

    def outside(self, ids: Iterable[str], tips: Iterable[str]) -> set[str]:
        """Return those of `ids` that none of `tips` leads to."""
        asked = set(ids)
        if not asked:
            return set()
        text = "".join(f"{i}\n" for i in sorted(asked)) + "".join(f"^{t}\n" for t in tips)
        return asked & set(self.git("rev-list", "--stdin", stdin=text).stdout.split())

    def files(self, ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the paths that each commit touches; a merge touches none of its own."""
        asked = list(ids)
        found: dict[str, list[str]] = {i: [] for i in asked}
        if not asked:
            return {}
        done = self.git(
            "-c", "core.quotePath=false",
            "diff-tree", "--stdin", "-r", "--name-only", "--no-renames", "--root",
            stdin="\n".join(asked) + "\n",
        )  # fmt: skip
        current: list[str] = []
        for line in done.stdout.splitlines():
            if line in found:
                current = found[line]
            else:
                current.append(line)
        return {i: tuple(paths) for i, paths in found.items()}

    def describe(self, commit: str) -> str:
        """Return the nearest tag below `commit`, or its short id."""
        try:
            return self.git("describe", "--tags", "--always", commit).stdout.strip()
        except CommandError:
            return commit[:12]


def _moment(text: bytes) -> int:
    """Return the seconds of an author line; 0 for those that tools of old left without or wild."""
    number = text.split(maxsplit=1)[0] if text.split() else b""
    return int(number) if number.isdigit() and len(number) < 12 else 0


def _parse(name: str, body: bytes) -> RawCommit:
    head, _, message = body.partition(b"\n\n")
    parents = []
    author, email, moment, zone, encoding = "", "", 0, "+0000", "utf-8"
    committed = 0
    for line in head.split(b"\n"):
        key, _, value = line.partition(b" ")
        if key == b"parent":
            parents.append(value.decode())
        elif key == b"author":
            who, _, when = value.rpartition(b"> ")
            person, _, address = who.partition(b"<")
            author = person.decode(errors="replace").strip()
            email = address.decode(errors="replace")
            moment = _moment(when)
            if match := _ZONE.search(when):
                zone = match[1].decode()
        elif key == b"committer":
            committed = _moment(value.rpartition(b"> ")[2])
        elif key == b"encoding":
            encoding = value.decode(errors="replace")
    try:
        text = message.decode(encoding, errors="replace")
    except LookupError:
        text = message.decode(errors="replace")
    return RawCommit(name, tuple(parents), author, email, moment, text, zone, committed)
