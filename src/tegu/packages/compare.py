"""What changed between two locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tegu.packages import version
from tegu.packages.lock import Lock, LockedPackage

__all__ = ["Change", "Difference", "diff"]

Kind = Literal["added", "removed", "upgraded", "downgraded", "rebuilt"]


@dataclass(frozen=True, slots=True)
class Change:
    """One package: its versions (None where it is not) and sizes in bytes.

    `rebuilt` is the same version with other content. `installed` is the change of the installed
    size in bytes, as far as the packages declare it.
    """

    set: Literal["system", "tools"]
    name: str
    kind: Kind
    old: str | None
    new: str | None
    download: int
    installed: int


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes, by set and name; the totals are of the system set, in bytes."""

    changes: tuple[Change, ...]
    download: int
    installed: int
    timestamp: tuple[int, int]

    def as_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {
            "changes": [
                {key: getattr(change, key) for key in Change.__slots__} for change in self.changes
            ],
            "download": self.download,
            "installed": self.installed,
            "timestamp": {"old": self.timestamp[0], "new": self.timestamp[1]},
        }


def diff(old: Lock, new: Lock) -> Difference:
    """Return what leads from `old` to `new`."""
    system = _changes("system", old.system, new.system)
    tools = _changes("tools", old.tools, new.tools)
    return Difference(
        changes=(*system, *tools),
        download=sum(p.size for p in new.system) - sum(p.size for p in old.system),
        installed=1024
        * (sum(p.installed_size for p in new.system) - sum(p.installed_size for p in old.system)),
        timestamp=(old.timestamp, new.timestamp),
    )


def _changes(
    title: Literal["system", "tools"], old: Sequence[LockedPackage], new: Sequence[LockedPackage]
) -> list[Change]:
    before = {p.name: p for p in old}
    after = {p.name: p for p in new}
    changes = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        kind = _kind(one, other)
        if kind is None:
            continue
        changes.append(
            Change(
                set=title,
                name=name,
                kind=kind,
                old=one.version if one else None,
                new=other.version if other else None,
                download=(other.size if other else 0) - (one.size if one else 0),
                installed=1024
                * ((other.installed_size if other else 0) - (one.installed_size if one else 0)),
            )
        )
    return changes


def _kind(one: LockedPackage | None, other: LockedPackage | None) -> Kind | None:
    if one is None:
        return "added"
    if other is None:
        return "removed"
    order = version.compare(one.version, other.version)
    if order:
        return "upgraded" if order < 0 else "downgraded"
    return None if one.sha256 == other.sha256 else "rebuilt"
