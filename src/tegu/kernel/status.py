"""Where our kernel stands: its source, what is newer, which of our patches arrived upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tegu.definition import load, shipped_definition
from tegu.kernel.gitrepo import Repo
from tegu.kernel.history import Pair
from tegu.kernel.missing import Comparison
from tegu.kernel.patches import Patch
from tegu.kernel.recipe import Recipe
from tegu.packages import find_source
from tegu.packages.version import compare

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["PatchStatus", "Status", "TreeStatus", "patch_status", "source_status", "tree_status"]


@dataclass(frozen=True, slots=True)
class Status:
    """The version that the recipe builds, and the newest that the distribution has."""

    release: str
    version: str
    newest: str

    @property
    def behind(self) -> bool:
        return compare(self.version, self.newest) < 0


@dataclass(frozen=True, slots=True)
class TreeStatus:
    """A tree beside mainline: nearest tags, and how many commits each has of its own."""

    mainline: str
    tree: str
    ahead: int
    behind: int


@dataclass(frozen=True, slots=True)
class PatchStatus:
    """One of our patches; `arrived` is the commit that makes it superfluous, None when needed."""

    patch: Patch
    arrived: str | None


def source_status(recipe: Recipe, store: Store, *, offline: bool = False) -> Status:
    """Ask the distribution's signed index for the newest source package."""
    newest = find_source(load(shipped_definition()), recipe.package, store, offline=offline)
    return Status(recipe.release, recipe.version, newest.version)


def tree_status(repo: Repo, pair: Pair) -> TreeStatus:
    """Say where the two histories are."""
    return TreeStatus(
        repo.describe(pair.mainline_tip),
        repo.describe(pair.tree_tip),
        len(pair.tree),
        len(pair.mainline),
    )


def patch_status(recipe: Recipe, pair: Pair, repo: Repo) -> list[PatchStatus]:
    """Say for each patch of our queue whether the tree has got it by now.

    A patch is known by its upstream commit; our own by their subject. What the tree has taken out
    again has not arrived.
    """
    comparison = Comparison(pair, repo)
    by_subject = {
        c.subject: c.id for c in reversed(pair.tree) if c.id not in comparison.tree_state.undone
    }
    return [
        PatchStatus(
            patch,
            by_subject.get(patch.subject)
            if patch.commit is None
            else comparison.arrived(patch.commit),
        )
        for patch in recipe.patches
    ]
