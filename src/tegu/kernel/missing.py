"""Which fixes a kernel tree lacks: mainline commits that mend something the tree has.

A tree *has* a commit when it is in its history, or when it has a backport of it or of another copy
of the same change, and nothing that still stands reverts it, in the tree or before it was branched.
A mainline commit is *missing* when it stands (no later revert that itself stands), the tree has not
got it and never had and dropped it, and it names by `Fixes:` or as a revert something that the tree
has, or that another missing one would bring.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tegu.kernel.gitrepo import Repo
from tegu.kernel.history import Commit, Pair
from tegu.kernel.merges import merged
from tegu.kernel.messages import Reference, first_line
from tegu.kernel.resolver import Resolver

__all__ = ["Comparison", "Findings", "Missing", "find_missing"]


_SKEW = 7 * 86400  # seconds by which clocks of authors are taken to be wrong


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
    different references lead to no commit of the repository."""

    missing: list[Missing]
    declined: list[Commit]
    unresolved: int


def find_missing(pair: Pair, repo: Repo) -> Findings:
    """Compare the two histories of `pair`."""
    return Comparison(pair, repo).findings()


@dataclass(slots=True)
class _Standing:
    """One history after its reverts: which of its commits are undone, and which shared ones.

    `restores` has, by commit, the reverts that it made void by bringing the change again.
    """

    undone: set[str] = field(default_factory=set)
    undone_shared: set[str] = field(default_factory=set)
    restores: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class Comparison:
    """What two histories have of each other's changes."""

    def __init__(self, pair: Pair, repo: Repo) -> None:
        self.pair = pair
        self.repo = repo
        self.resolver = Resolver(pair, repo)
        self.mainline = {c.id: c for c in pair.mainline}
        self.tree = {c.id: c for c in pair.tree}
        self._same = self._changes()
        self.copies: dict[str, list[str]] = defaultdict(list)
        for commit in pair.mainline:
            self.copies[self.change(commit.id)].append(commit.id)
        self.origin = self._origins()
        self.backports: dict[str, list[str]] = defaultdict(list)
        for commit in pair.tree:  # newest first
            if (origin := self.origin.get(commit.id)) is not None:
                self.backports[self.change(origin)].append(commit.id)
        self.tree_state = self._standing(pair.tree, self.backports)
        self.mainline_state = self._standing(pair.mainline, self.copies)
        self._gone = self.tree_state.undone_shared | self._undone_before()

    def change(self, commit: str) -> str:
        """Return the commit that stands for all of mainline's copies of one change."""
        while (other := self._same.get(commit, commit)) != commit:
            commit = other
        return commit

    def _changes(self) -> dict[str, str]:
        """Find mainline's copies of its own changes: the same fix in two maintainers' trees.

        They say so (`git cherry-pick -x`), or have author, second and subject in common; one of
        them may be among what both histories have.
        """
        self._same = {}
        mine = {
            (c.email, c.time, c.subject)
            for c in self.pair.mainline
            # What was written later than that cannot be among what both have.
            if len(c.parents) < 2 and c.time <= self.pair.parted + _SKEW
        }
        found = self.pair.shared({subject for _, _, subject in mine})
        shared = sorted({i for ids in found.values() for i in ids})
        seen: dict[tuple[str, int, str], str] = {}
        for raw in self.repo.read(shared) if shared else ():
            key = raw.email, raw.time, first_line(raw.message)
            if key in mine:
                seen[key] = raw.id
        for commit in reversed(self.pair.mainline):
            others = [self.resolver.by_id(Reference(u)) for u in commit.upstream]
            if commit.time and len(commit.parents) < 2:
                others.append(seen.get((commit.email, commit.time, commit.subject)))
                seen[commit.email, commit.time, commit.subject] = commit.id
            for other in others:
                if other is None or other in self.tree:
                    continue
                one, two = self.change(commit.id), self.change(other)
                if one != two:
                    # What both histories have stands for the rest.
                    keep, drop = (one, two) if one not in self.mainline else (two, one)
                    self._same[drop] = keep
        return self._same

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
            if commit.upstream:
                ids = [self.resolver.by_id(Reference(u)) for u in commit.upstream]
                known = [i for i in ids if i is not None and i not in self.tree]
                origins[commit.id] = known[0] if known else commit.upstream[0]
                continue
            same = by_author.get((commit.email, commit.time), [])
            if len(same) > 1:
                same = [c for c in same if c.subject == commit.subject]
            if len({self.change(c.id) for c in same}) == 1:
                origins[commit.id] = same[0].id
        return origins

    def _standing(self, commits: Sequence[Commit], copies: Mapping[str, list[str]]) -> _Standing:
        """Follow the reverts from the newest commit back: what is undone undoes nothing itself."""
        order = {c.id: n for n, c in enumerate(commits)}
        parents = {c.id: c.parents for c in commits}
        state = _Standing()
        for commit in commits:
            if commit.id in state.undone or not commit.reverts:
                continue
            targets = self._reverted(commit, order, copies, state)
            if copies is self.copies and self._made_void(commit, targets, order, state):
                continue
            for target in targets:
                if target not in order:
                    state.undone_shared.add(target)
                    continue
                state.undone.add(target)
                if len(parents[target]) > 1:
                    state.undone |= merged(target, parents, order)
        for found in self._shared_copies(state.undone_shared).values():
            state.undone_shared |= found.keys()
        for brought in self.repo.merges(state.undone_shared).values():
            state.undone_shared |= brought
        return state

    def _made_void(
        self,
        commit: Commit,
        targets: set[str],
        order: dict[str, int],
        state: _Standing,
    ) -> bool:
        """Say whether what `commit` took out of mainline was brought again by a later copy."""
        for target in targets:
            for copy in self.copies.get(self.change(target), ()):
                if order[copy] < order[commit.id] and self.repo.is_ancestor(commit.id, copy):
                    state.undone.add(commit.id)
                    state.restores[copy].append(commit.id)
                    return True
        return False

    def _reverted(
        self,
        commit: Commit,
        order: dict[str, int],
        copies: Mapping[str, list[str]],
        state: _Standing,
    ) -> set[str]:
        """Return what `commit` undoes: commits of its own history, or shared ones."""
        targets: set[str] = set()
        for reference in commit.reverts:
            found = self.resolver.resolve(reference, commit)
            standing = [i for i in found if i not in state.undone] or found
            if not standing:
                continue
            target = standing[0]
            change = self.change(target)
            if copies is self.copies:
                # In mainline a change is out when one of its copies is said to be.
                targets |= {target, *(i for i in copies.get(change, ()))}
            elif target not in order and copies.get(change):
                # Named by its upstream id: the newest backport below that still stands.
                below = [i for i in copies[change] if order[i] > order[commit.id]]
                left = [i for i in below if i not in state.undone]
                if left and not targets & set(below):
                    targets.add(left[0])
            else:
                targets.add(target)
        return targets

    def _undone_before(self) -> set[str]:
        """Return the shared commits that were out already where the two histories parted."""
        undone: set[str] = set()
        targets: dict[str, list[str]] = {}
        for commit in self.pair.shared_reverts:
            found = [self.resolver.resolve(r, commit) for r in commit.reverts]
            targets[commit.id] = [f[0] for f in found if len(f) == 1]
        copies = self._shared_copies({t for ts in targets.values() for t in ts})
        for commit in self.pair.shared_reverts:
            if commit.id in undone or commit.id in self.tree_state.undone_shared:
                continue
            for target in targets[commit.id]:
                again = copies.get(target, {target: 0})
                if all(moment <= commit.committed for moment in again.values()):
                    undone |= again.keys()
        for brought in self.repo.merges(undone).values():
            undone |= brought
        return undone

    def _shared_copies(self, ids: set[str]) -> dict[str, dict[str, int]]:
        """Return shared commits that are the same change as `ids`, with when they were committed.

        The same author, second and subject, as `git cherry-pick` leaves them.
        """
        raw = {c.id: c for c in self.repo.read(sorted(ids))} if ids else {}
        titles = {i: first_line(c.message) for i, c in raw.items()}
        same = self.pair.shared(set(titles.values()))
        others = {o for found in same.values() if len(found) > 1 for o in found}
        raw.update({c.id: c for c in self.repo.read(sorted(others - raw.keys()))} if others else {})
        return {
            i: {
                o: raw[o].committed
                for o in {i, *same[title]}
                if o in raw and (raw[o].email, raw[o].time) == (raw[i].email, raw[i].time)
            }
            for i, title in titles.items()
        }

    def has(self, target: str) -> bool:
        """Say whether the tree has the (mainline, shared or own) commit `target`."""
        if target in self.tree:
            return target not in self.tree_state.undone
        change = self.change(target)
        if any(i not in self.tree_state.undone for i in self.backports.get(change, ())):
            return True
        return change not in self.mainline and change not in self._gone

    def arrived(self, commit: str) -> str | None:
        """Return what the tree has of the mainline commit `commit`: a backport, itself, or None."""
        found = self.resolver.by_id(Reference(commit)) or commit
        change = self.change(found)
        for here in self.backports.get(change, ()):
            if here not in self.tree_state.undone:
                return here
        known = found in self.mainline or found in self.tree or bool(self.repo.full_ids([found]))
        return change if known and self.has(found) else None

    def findings(self) -> Findings:
        """Say what is missing."""
        wanted: dict[str, Missing] = {}
        declined = []
        for commit in reversed(self.pair.mainline):
            if len(commit.parents) > 1 or commit.id in self.mainline_state.undone:
                continue
            change = self.change(commit.id)
            if change in wanted or self.has(commit.id):
                continue
            fixed = self._targets(commit, commit.fixes)
            reverted = self._targets(commit, commit.reverts)
            mends = list(dict.fromkeys([*fixed, *reverted]))
            there = [t for t in mends if self.has(t)]
            follows = [t for t in mends if t not in there and self.change(t) in wanted]
            if not there and not follows:
                continue
            restored = any(self.has(r) for r in self.mainline_state.restores.get(commit.id, ()))
            if self._declined(change) and not restored:
                declined.append(commit)  # the tree had it, and took it out by its own decision
                continue
            wanted[change] = Missing(
                commit,
                "revert" if set(reverted) & {*there, *follows} else "fix",
                tuple(t for t in mends if t in there or t in follows),
                follows=not there,
                cves=commit.cves,
            )
        return Findings(list(wanted.values()), declined, len(self.resolver.unresolved))

    def _declined(self, change: str) -> bool:
        return change in self.backports or change in self.tree_state.undone_shared

    def _targets(self, commit: Commit, references: Iterable[Reference]) -> list[str]:
        found = []
        for reference in references:
            # Where only a subject says which, and several changes bear it, nobody can know.
            changes = {self.change(i): i for i in self.resolver.resolve(reference, commit)}
            if not reference.id and changes:
                found.append(next(iter(changes.values())))
            elif len(changes) == 1:
                found += changes.values()
        return [self.origin.get(t, t) if t in self.tree else t for t in found]
