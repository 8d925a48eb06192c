"""Which package a dependency with several answers means: the one that apt would take.

libsolv looks for any consistent set; people expect the first alternative of `a | b`. So the closure
of what was asked for is walked once, taking the first alternative each time, and what was met on
the way becomes the favourite wherever libsolv has a choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import solv

from .repos import Repositories

__all__ = ["Preferences"]


class Preferences:
    """The walk. `favoured` are solvable ids, `outdated` those that a newer version replaces."""

    def __init__(
        self, repositories: Repositories, disabled: set[int], keep: set[str], *, recommends: bool
    ) -> None:
        self._repositories = repositories
        self._disabled = disabled
        self._keep = keep
        # libsolv keeps Pre-Depends behind a marker in the requires: 1 is what follows it.
        self._parts = [(solv.SOLVABLE_REQUIRES, 1), (solv.SOLVABLE_REQUIRES, -1)]
        if recommends:
            self._parts.append((solv.SOLVABLE_RECOMMENDS, 0))
        self._ranks = repositories.ranks()
        self._rejected: set[int] = set()
        self._best: dict[str, Any] = {}
        self.favoured: dict[int, str] = {}
        self.outdated: set[int] = set()

    def best(self, name: str) -> Any:
        """Return the newest allowed solvable called `name`, None where there is none."""
        if name not in self._best:
            allowed = [s for s in self._repositories.named(name) if s.id not in self._disabled]
            newest = None
            for solvable in allowed:
                if newest is None or solvable.evrcmp(newest) > 0:
                    newest = solvable
            if newest is not None:
                self.outdated.update(s.id for s in allowed if s.evrid != newest.evrid)
            self._best[name] = newest
        return self._best[name]

    def reconsider(self, names: Iterable[str], found: set[int]) -> bool:
        """Walk again without the favourites that are not among `found`.

        Returns whether that leads to favourites that are not there yet.
        """
        missing = self.favoured.keys() - found - self._rejected
        if not missing:
            return False
        self._rejected |= missing
        self.favoured = {}
        self.walk(names)
        return bool(self.favoured.keys() - found - self._rejected)

    def walk(self, names: Iterable[str]) -> None:
        """Take `names` and, depth first, what they need."""
        stack = list(reversed(list(names)))
        while stack:
            solvable = self.best(stack.pop())
            if solvable is None or solvable.id in self.favoured:
                continue
            self.favoured[solvable.id] = solvable.name
            needed = [
                choice
                for key, part in self._parts
                for dep in solvable.lookup_deparray(key, part)
                if (choice := self._choose(dep)) is not None
            ]
            stack.extend(reversed(needed))

    def _choose(self, dep: Any) -> str | None:
        """Return the name of the package that answers `dep`; None if there is none."""
        text: str = dep.str()
        off = self._disabled | self._rejected if self._rejected else self._disabled
        providers = [s for s in self._repositories.pool.whatprovides(dep) if s.id not in off]
        if not providers:
            return None
        by_name: set[str] = {s.name for s in providers}
        if len(by_name) == 1:
            return next(iter(by_name))
        if kept := sorted(self._keep & by_name):
            taken = [name for name in kept if self._is_favoured(name)]
            return (taken or kept)[0]
        alternatives = [part.split()[0].partition(":")[0] for part in text.split(" | ")]
        for name in alternatives:
            if name in by_name and self.best(name) is not None:
                return name
            provided: set[str] = {
                s.name
                for s in self._repositories.pool.whatprovides(self._repositories.pool.Dep(name))
            }
            if candidates := (provided & by_name) - set(alternatives):
                return min(candidates, key=lambda n: (not self._is_favoured(n), self._rank(n)))
        return min(by_name, key=self._rank)

    def _rank(self, name: str) -> tuple[int, str]:
        return self._ranks.get(name, 3), name

    def _is_favoured(self, name: str) -> bool:
        best = self.best(name)
        return best is not None and best.id in self.favoured
