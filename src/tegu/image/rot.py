"""Rot in the store: found by reading, cured by making again from what is known to be good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tegu.errors import StoreError
from tegu.image.configured import KIND as SYSTEMS
from tegu.image.configured import Configured
from tegu.image.trees import KIND as TREES
from tegu.image.trees import Tree, all_trees, unpacked_of
from tegu.image.unpack import KIND as PACKAGES
from tegu.packages.lock import LockedPackage
from tegu.store import Store

__all__ = ["DamagedError", "check_packages", "drop_damaged", "find_rot"]


class DamagedError(StoreError):
    """Something in the store is not what it was; `packages` are SHA-256s of damaged packages."""

    packages: tuple[str, ...] = ()

    @classmethod
    def of(cls, damaged: Sequence[LockedPackage]) -> DamagedError:
        names = ", ".join(p.name for p in damaged) or "a cached tree"
        error = cls(f"the store's copy of {names} is damaged", hint="is the disk failing?")
        error.packages = tuple(p.sha256 for p in damaged)
        return error


def check_packages(store: Store, packages: Sequence[LockedPackage]) -> None:
    """Read all unpacked packages; raises DamagedError if any has changed."""
    damaged = [u.package for u in unpacked_of(store, packages) if u.damage() is not None]
    if damaged:
        raise DamagedError.of(damaged)


def find_rot(
    store: Store, packages: Sequence[LockedPackage], tree: Tree, system: Configured
) -> list[LockedPackage]:
    """Compare a finished tree's files with the packages' records; returns damaged packages.

    A file that differs is rotten unless it was changed on purpose, that is, unless a layer above
    the merged packages holds it.
    """
    content = {i.path: i.content for i in system.items(store) if i.kind == "f"}
    merged = {layer for layer in tree.layers if layer.endswith("/lower")}
    above = [store.root / layer for layer in system.layers if layer not in merged]
    damaged = []
    for unpacked in unpacked_of(store, packages):
        for entry in unpacked.entries:
            found = content.get(entry.path)
            if entry.kind != "f" or found is None or found == entry.digest:
                continue
            if any((layer / entry.path).exists() for layer in above):
                continue
            if unpacked.damage() is not None:
                damaged.append(unpacked.package)
                break
    return damaged


def drop_damaged(store: Store, packages: Sequence[str]) -> None:
    """Drop damaged packages and every tree that shares files with them."""
    wanted = set(packages)
    for sha256 in packages:
        store.drop_tree(PACKAGES, sha256)
    for tree in all_trees(store):
        if not wanted or wanted & set(tree.packages.values()):
            store.drop_tree(TREES, tree.key)
    systems = store.root / SYSTEMS
    for path in sorted(systems.iterdir()) if systems.is_dir() else ():
        store.drop_tree(SYSTEMS, Path(path).name)
