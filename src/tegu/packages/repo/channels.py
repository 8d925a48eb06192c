"""What is in a channel changes: packages leave, whole channels are promoted, snapshots taken."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tegu.errors import RepositoryError, UsageError
from tegu.packages.repo.catalogue import Item
from tegu.packages.repo.repository import Repository
from tegu.packages.repo.settings import check_name
from tegu.packages.repo.versions import sort_key

__all__ = ["Promoted", "promote", "remove", "roll_out", "select", "take_snapshot"]


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a channel got, and what left it."""

    entered: tuple[Item, ...]
    left: tuple[Item, ...]


def select(items: Sequence[Item], patterns: Sequence[str], where: str) -> list[Item]:
    """Return those whose name, or `name=version`, fits one of the shell `patterns`.

    Raises RepositoryError for a pattern that none fits.
    """
    chosen: dict[str, Item] = {}
    for pattern in patterns:
        name, equals, version = pattern.partition("=")
        found = [
            i
            for i in items
            if fnmatch.fnmatchcase(i.name, name)
            and (not equals or fnmatch.fnmatchcase(i.version, version))
        ]
        if not found:
            raise RepositoryError(f"{where} has no package {pattern}")
        chosen.update((i.sha256, i) for i in found)
    return list(chosen.values())


def remove(repo: Repository, channel: str, patterns: Sequence[str]) -> list[Item]:
    """Take packages out of a channel (snapshots keep them). The caller holds the lock."""
    repo.channel(channel)
    gone = select(repo.catalogue.members(channel), patterns, channel)
    with repo.catalogue.change():
        repo.catalogue.leave(channel, [i.sha256 for i in gone])
    return gone


def promote(
    repo: Repository,
    source: str,
    target: str,
    patterns: Sequence[str] = (),
    *,
    allow_downgrade: bool = False,
    percent: int = 100,
) -> Promoted:
    """Make the channel `target` what the channel or snapshot `source` is, without a rebuild.

    With `patterns` only those packages go along: they replace the versions that `target` has. What
    is new there is for `percent` of the machines (`roll_out`). Raises RepositoryError when a
    package's newest version would go backwards. The caller holds the lock.
    """
    _check_percent(percent)
    repo.channel(target)
    repo.collection(source)
    if source == target:
        raise RepositoryError(f"{source} cannot be promoted to itself")
    offered = repo.catalogue.members(source)
    there = repo.catalogue.members(target)
    if patterns:
        offered = select(offered, patterns, source)
        names = {(i.kind, i.name) for i in offered}
        there = [i for i in there if (i.kind, i.name) in names]
    have = {i.sha256 for i in there}
    entered = [i for i in offered if i.sha256 not in have]
    stay = {i.sha256 for i in offered}
    left = [i for i in there if i.sha256 not in stay]
    if not allow_downgrade:
        _refuse_backwards(there, offered, target)
    with repo.catalogue.change():
        repo.catalogue.enter(target, [i.sha256 for i in entered])
        repo.catalogue.offer(target, [i.sha256 for i in entered if i.kind == "deb"], percent)
        if percent == 100:
            repo.catalogue.leave(target, [i.sha256 for i in left])
    return Promoted(tuple(entered), tuple(left))


def roll_out(
    repo: Repository, channel: str, percent: int, patterns: Sequence[str] = ()
) -> list[Item]:
    """Offer what is being rolled out in `channel` to `percent` of the machines; return it.

    That are the packages that fit `patterns`, or all that not everybody may have yet. apt chooses
    the machines; 0 stops a roll-out, 100 ends it: the older versions leave the channel then. Raises
    RepositoryError where there is nothing to roll out, and for RPM packages, whose indexes know no
    such thing. The caller holds the lock.
    """
    _check_percent(percent)
    repo.channel(channel)
    members = repo.catalogue.members(channel)
    if patterns:
        chosen = list(_newest(select(members, patterns, channel)).values())
        if rpms := [i for i in chosen if i.kind == "rpm"]:
            raise RepositoryError(f"{rpms[0].shown} is an RPM package: dnf rolls nothing out")
    else:
        offered = repo.catalogue.offered(channel)
        chosen = [i for i in members if i.sha256 in offered]
        if not chosen:
            raise RepositoryError(
                f"{channel} rolls nothing out",
                hint="name packages, or promote them with --percent",
            )
    with repo.catalogue.change():
        repo.catalogue.offer(channel, [i.sha256 for i in chosen], percent)
        if percent == 100:
            done = {(i.kind, i.name, i.arch): i for i in chosen}
            repo.catalogue.leave(channel, [i.sha256 for i in members if _replaced(i, done)])
    return chosen


def _replaced(item: Item, by: Mapping[tuple[str, str, str], Item]) -> bool:
    newer = by.get((item.kind, item.name, item.arch))
    return newer is not None and sort_key(item) < sort_key(newer)


def _check_percent(percent: int) -> None:
    if not 0 <= percent <= 100:
        raise UsageError(f"{percent} % of the machines: it must be 0 to 100")


def _refuse_backwards(there: Sequence[Item], offered: Sequence[Item], target: str) -> None:
    new = _newest(offered)
    for key, item in _newest(there).items():
        coming = new.get(key)
        if coming is not None and sort_key(coming) < sort_key(item):
            raise RepositoryError(
                f"{coming.shown} would go backwards: {target} has {item.version}",
                hint="with --allow-downgrade it does",
            )


def _newest(items: Sequence[Item]) -> dict[tuple[str, str, str], Item]:
    newest: dict[tuple[str, str, str], Item] = {}
    for item in items:
        key = (item.kind, item.name, item.arch)
        if key not in newest or sort_key(newest[key]) < sort_key(item):
            newest[key] = item
    return newest


def take_snapshot(repo: Repository, channel: str, name: str) -> int:
    """Freeze what `channel` has under `name`; returns the number of packages.

    A snapshot never changes and never goes: its name cannot be used again. The caller holds the
    lock; `publish` writes its indexes.
    """
    repo.channel(channel)
    check_name(name, "snapshot")
    if repo.catalogue.collection(name) is not None or name in repo.settings.channels:
        raise RepositoryError(f"there is a channel or snapshot {name} already")
    members = repo.catalogue.members(channel)
    if not members:
        raise RepositoryError(f"{channel} is empty: there is nothing to take a snapshot of")
    with repo.catalogue.change():
        repo.catalogue.create(name, channel, int(time.time()))
        repo.catalogue.enter(name, [i.sha256 for i in members])
    return len(members)
