"""From what a message calls a commit to the commit: short ids, ids of rebased trees, subjects."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

from tegu.kernel.gitrepo import Repo
from tegu.kernel.history import Commit, Pair
from tegu.kernel.messages import Reference

__all__ = ["Resolver"]


class Resolver:
    """Turns what a message calls a commit into the commit's id."""

    def __init__(self, pair: Pair, repo: Repo) -> None:
        self._by_id = {c.id: c for c in (*pair.mainline, *pair.tree)}
        self._sorted = sorted(self._by_id)
        self._places: dict[str, dict[str, int]] = {}
        self._subjects: dict[str, dict[str, list[str]]] = {}
        for side, commits in (("mainline", pair.mainline), ("tree", pair.tree)):
            self._places[side] = {c.id: n for n, c in enumerate(commits)}
            subjects: dict[str, list[str]] = defaultdict(list)
            for commit in commits:
                subjects[commit.subject].append(commit.id)
            self._subjects[side] = subjects
        self.unresolved: set[Reference] = set()
        everything = (*self._by_id.values(), *pair.shared_reverts)
        references = {r for c in everything for r in (*c.fixes, *c.reverts)}
        named = {r.id for r in references if r.id} | {u for c in everything for u in c.upstream}
        found = repo.full_ids(sorted(i for i in named if not self._prefixed(i)))
        strangers = repo.outside(found.values(), (pair.mainline_tip, pair.tree_tip))
        self._common = {short: i for short, i in found.items() if i not in strangers}
        self._shared = pair.shared(
            {r.subject for r in references if r.subject and self.by_id(r) is None}
        )

    def _prefixed(self, short: str) -> list[str]:
        found = []
        position = bisect_left(self._sorted, short)
        while position < len(self._sorted) and self._sorted[position].startswith(short):
            found.append(self._sorted[position])
            position += 1
        return found

    def by_id(self, reference: Reference) -> str | None:
        """Return the commit whose id (perhaps short) `reference` gives."""
        if not reference.id:
            return None
        found = self._prefixed(reference.id)
        if len(found) > 1:
            found = [i for i in found if self._by_id[i].subject == reference.subject]
        return found[0] if len(found) == 1 else self._common.get(reference.id)

    def resolve(self, reference: Reference, by: Commit) -> list[str]:
        """Return the commits that `by` may mean, newest first; none when there is none.

        Several only where nothing but a subject says which. A commit means older ones of its own
        history: mainline does not speak of backports, though they bear the same subjects.
        """
        found = self.by_id(reference)
        named = self._by_id.get(found) if found else None
        if found and (named is None or not reference.subject or named.subject == reference.subject):
            return [found]
        same = self._with_subject(reference.subject, by) if reference.subject else []
        if found and len(same) != 1:
            return [found]  # few quote a subject exactly
        if not same:
            self.unresolved.add(reference)
        return same

    def _with_subject(self, subject: str, by: Commit) -> list[str]:
        for side, places in self._places.items():
            at = places.get(by.id)
            if at is None:
                continue
            older = [i for i in self._subjects[side].get(subject, []) if places[i] > at]
            if older:
                return older
        shared = self._shared.get(subject, [])
        return shared if len(shared) == 1 else []
