"""Which of two versions is newer: each kind of package has its own order."""

from __future__ import annotations

from typing import Any

from tegu.packages import version as deb_version
from tegu.packages.repo import rpm_version
from tegu.packages.repo.catalogue import Item

__all__ = ["newer_than", "sort_key"]


def newer_than(one: Item, other: Item) -> bool:
    """Say whether `one` is newer than `other`, of the same kind."""
    order = deb_version.compare if one.kind == "deb" else rpm_version.compare
    return order(one.version, other.version) > 0


def sort_key(item: Item) -> Any:
    """Return a key that sorts packages of one kind by version, oldest first."""
    return (deb_version if item.kind == "deb" else rpm_version).sort_key(item.version)
