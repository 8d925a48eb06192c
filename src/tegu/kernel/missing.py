"""Which fixes a kernel tree lacks: mainline commits that mend something the tree has.

A tree *has* a commit when it is in its history, or when it has a backport of it, and nothing in the
tree that still stands reverts it. A mainline commit is *missing* when it stands (no later revert
that itself stands), the tree has not got it and never had and dropped it, and it names by `Fixes:`
or as a revert something that the tree has, or that another missing one would bring.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Literal

from tegu.kernel.gitrepo import Repo
from tegu.kernel.history import Commit, Pair
from tegu.kernel.messages import Reference

__all__ = ["Findings", "Missing", "find_missing", "with_files"]


@dataclass(frozen=True, slots=True)
class Missing:
    """A commit that the tree lacks, and the commits that it mends.

    `follows` says that it is wanted only together with another missing one. `built` says whether
    the configuration compiles one of its `files`; None: not known.
    """

    commit: Commit
    kind: Literal["fix", "revert"]
    mends: tuple[str, ...]
    follows: bool
    files: tuple[str, ...] = ()
    built: bool | None = None
    cves: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found: missing fixes, oldest first; what the tree dropped on purpose; how many
    references lead to no commit of the repository."""

    missing: list[Missing]
    declined: list[Commit]
    unresolved: int


def find_missing(pair: Pair, repo: Repo) -> Findings:
    """Compare the two histories of `pair`."""
    return _Comparison(pair, _Resolver(pair, repo)).findings()


class _Resolver:
    """Turns what a message calls a commit into the commit's id."""

    def __init__(self, pair: Pair, repo: Repo) -> None:
        self._subjects: dict[str, list[str]] = defaultdict(list)
        self._by_id = {c.id: c for c in (*pair.mainline, *pair.tree)}
        self._sorted = sorted(self._by_id)
        for commit in self._by_id.values():
            self._subjects[commit.subject].append(commit.id)
        self.unresolved = 0
        named = [
            r.id
            for c in self._by_id.values()
            for r in (*c.fixes, *c.reverts)
            if r.id and not self._prefixed(r.id)
        ]
        found = repo.full_ids(named)
        strangers = repo.outside(found.values(), (pair.mainline_tip, pair.tree_tip))
        self._common = {short: i for short, i in found.items() if i not in strangers}

    def _prefixed(self, short: str) -> list[str]:
        found = []
        position = bisect_left(self._sorted, short)
        while position < len(self._sorted) and self._sorted[position].startswith(short):
            found.append(self._sorted[position])
            position += 1
        return found

    def resolve(self, reference: Reference) -> str | None:
        """Return the commit's id, None when the repository has none."""
        if reference.id:
            found = self._prefixed(reference.id)
            if len(found) > 1:
                found = [i for i in found if self._by_id[i].subject == reference.subject]
            if len(found) == 1:
                return found[0]
            if reference.id in self._common:
                return self._common[reference.id]
        # An id from a tree that was rebased: the subject, if there is one commit with it.
        same = self._subjects.get(reference.subject, []) if reference.subject else []
        if len(same) == 1:
            return same[0]
        self.unresolved += 1
        return None

    def older_with_subject(self, commit: Commit, subject: str, order: dict[str, int]) -> str | None:
        """Return the newest commit of `order` below `commit` that has this subject."""
        at = order[commit.id]
        older = [i for i in self._subjects.get(subject, []) if order.get(i, -1) > at]
        return min(older, key=order.__getitem__, default=None)


@dataclass(slots=True)
class _Standing:
    """One history after its reverts: which of its commits are undone, and which shared ones."""

    undone: set[str] = field(default_factory=set)
    undone_shared: set[str] = field(default_factory=set)


class _Comparison:
    def __init__(self, pair: Pair, resolver: _Resolver) -> None:
        self.pair = pair
        self.resolver = resolver
        self.mainline = {c.id: c for c in pair.mainline}
        self.tree = {c.id: c for c in pair.tree}
        self.origin = self._origins()
        self.backports: dict[str, list[str]] = defaultdict(list)
        for commit in pair.tree:  # newest first
            if (origin := self.origin.get(commit.id)) is not None:
                self.backports[origin].append(commit.id)
        self.tree_state = self._standing(pair.tree, self.backports)
        self.mainline_state = self._standing(pair.mainline, {})

    def _origins(self) -> dict[str, str]:
        """Return the mainline commit that each of the tree's commits is a backport of.

        Without an id in its message, a commit of the same author and second is the same change
        (cherry-picking keeps both); the subject decides when there are several.
        """
        by_author: dict[tuple[str, int], list[Commit]] = defaultdict(list)
        for commit in self.pair.mainline:
            by_author[commit.email, commit.time].append(commit)
        origins = {}
        for commit in self.pair.tree:
            if commit.upstream is not None:
                full = self.resolver.resolve(Reference(commit.upstream))
                origins[commit.id] = full or commit.upstream
                continue
            same = by_author.get((commit.email, commit.time), [])
            if len(same) > 1:
                same = [c for c in same if c.subject == commit.subject]
            if len(same) == 1:
                origins[commit.id] = same[0].id
        return origins

    def _standing(self, commits: Sequence[Commit], backports: dict[str, list[str]]) -> _Standing:
        """Follow the reverts from the newest commit back: what is undone undoes nothing itself."""
        order = {c.id: n for n, c in enumerate(commits)}
        parents = {c.id: c.parents for c in commits}
        state = _Standing()
        for commit in commits:
            if commit.id in state.undone:
                continue
            for target in self._reverted(commit, order, backports, state):
                if target not in order:
                    state.undone_shared.add(target)
                    continue
                state.undone.add(target)
                if len(parents[target]) > 1:
                    state.undone |= _merged(target, parents, order)
        return state

    def _reverted(
        self,
        commit: Commit,
        order: dict[str, int],
        backports: dict[str, list[str]],
        state: _Standing,
    ) -> set[str]:
        targets: set[str] = set()
        for reference in commit.reverts:
            target: str | None
            if reference.id:
                target = self.resolver.resolve(reference)
            else:
                target = self.resolver.older_with_subject(commit, reference.subject, order)
            if target is None:
                continue
            if target not in order and target in backports:
                # Named by its upstream id: the newest backport below that still stands.
                below = [i for i in backports[target] if order[i] > order[commit.id]]
                standing = [i for i in below if i not in state.undone]
                if standing and not targets & set(below):
                    targets.add(standing[0])
                continue
            targets.add(target)
        return targets

    def has(self, target: str) -> bool:
        """Say whether the tree has the (mainline, shared or own) commit `target`."""
        if any(i not in self.tree_state.undone for i in self.backports.get(target, ())):
            return True
        if target in self.tree:
            return target not in self.tree_state.undone
        return target not in self.mainline and target not in self.tree_state.undone_shared

    def findings(self) -> Findings:
        wanted: dict[str, Missing] = {}
        declined = []
        for commit in reversed(self.pair.mainline):
            if len(commit.parents) > 1 or commit.id in self.mainline_state.undone:
                continue
            if self.has(commit.id):
                continue
            fixed = self._targets(commit.fixes)
            reverted = self._targets(commit.reverts)
            mends = list(dict.fromkeys([*fixed, *reverted]))
            there = [t for t in mends if self.has(t)]
            if not there and not any(t in wanted for t in mends):
                continue
            if commit.id in self.backports:
                declined.append(commit)  # the tree had it, and took it out again
                continue
            wanted[commit.id] = Missing(
                commit,
                "revert" if set(reverted) & {*there, *wanted} else "fix",
                tuple(t for t in mends if t in there or t in wanted),
                follows=not there,
                cves=commit.cves,
            )
        return Findings(list(wanted.values()), declined, self.resolver.unresolved)

    def _targets(self, references: Iterable[Reference]) -> list[str]:
        found = (self.resolver.resolve(r) for r in references)
        return [self.origin.get(t, t) if t in self.tree else t for t in found if t is not None]


def _merged(merge: str, parents: dict[str, tuple[str, ...]], order: dict[str, int]) -> set[str]:
    """Return what a merge brought in: all that its first parent did not have.

    Walks both sides together, children before parents, until nothing is left that only the merged
    side leads to; so it costs the size of the merge rather than of the history.
    """
    first, *others = parents[merge]
    ours: dict[str, bool] = {}
    queue: list[int] = []
    names = {}
    pending = 0  # in the queue, and reached from the merged side only

    def reach(name: str, from_first: bool) -> None:
        nonlocal pending
        if name not in order:
            return
        known = ours.get(name)
        if known is None:
            heappush(queue, order[name])
            names[order[name]] = name
            ours[name] = from_first
            pending += not from_first
        elif from_first and not known:
            ours[name] = True
            pending -= 1

    reach(first, from_first=True)
    for other in others:
        reach(other, from_first=False)
    brought = set()
    while pending:
        name = names[heappop(queue)]
        if not ours[name]:
            pending -= 1
            brought.add(name)
        for parent in parents[name]:
            reach(parent, from_first=ours[name])
    return brought


def with_files(
    missing: Sequence[Missing],
    repo: Repo,
    built: frozenset[str] | None,
    cves: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Missing]:
    """Return `missing` with the files that each touches; those that are built come first.

    `built` are the sources that a configuration compiles (None: not known), `cves` the CVE numbers
    by commit, beside those that the messages name. A makefile, a table or a script is compiled by
    nobody: in or right below a directory that has built sources it is not known whether it matters.
    """
    directories = {path.rpartition("/")[0] for path in built or ()}

    def is_built(names: tuple[str, ...]) -> bool | None:
        if built is None or any(name in built for name in names):
            return None if built is None else True
        for name in names:
            directory = name.rpartition("/")[0]
            near = {directory, directory.rpartition("/")[0] or directory} & directories
            if near and not name.endswith((".c", ".h", ".S")):
                return None
        return False

    files = repo.files(m.commit.id for m in missing)
    found = [
        replace(
            m,
            files=files[m.commit.id],
            built=is_built(files[m.commit.id]),
            cves=tuple(dict.fromkeys([*m.cves, *(cves or {}).get(m.commit.id, ())])),
        )
        for m in missing
    ]
    return sorted(found, key=lambda m: m.built is False)
