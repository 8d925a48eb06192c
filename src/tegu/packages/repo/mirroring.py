"""A suite of another apt repository, or packages of it, brought into a channel of ours.

Its index is verified against its own keyring and age, each package against that index; what the
pool has is not fetched again. Clients then trust our signature.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import RepositoryError, UsageError
from tegu.packages.fetch import fetch_all
from tegu.packages.index import SuiteIndex, load_indexes
from tegu.packages.lock import Lock, LockedPackage, LockedRepository
from tegu.packages.repo.intake import Added, add
from tegu.packages.repo.repository import Repository
from tegu.packages.sources import Mirror, Source
from tegu.packages.version import sort_key
from tegu.packages.versions import read_packages

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["Upstream", "mirror"]

Say = Callable[[str], None]
_ID = "upstream"


@dataclass(frozen=True, slots=True)
class Upstream:
    """What to mirror: a suite below `url`, of which `packages` (shell patterns; none means all)."""

    url: str
    suite: str
    components: tuple[str, ...]
    architectures: tuple[str, ...]
    keyring: Path
    packages: tuple[str, ...] = ()


def mirror(
    repo: Repository,
    channel: str,
    upstream: Upstream,
    store: Store,
    *,
    allow_downgrade: bool = False,
    say: Say = lambda _: None,
) -> Added:
    """Bring the newest version of each chosen package into `channel`. The caller holds the lock.

    Raises FetchError, VerifyError, and what `add` raises.
    """
    repo.channel(channel)
    source = Source(
        id=_ID,
        uri=upstream.url,
        mirror=Mirror(upstream.url),
        suite=upstream.suite,
        components=upstream.components,
        keyrings=(str(upstream.keyring),),
    )
    chosen: dict[tuple[str, str], LockedPackage] = {}

    def wanted(name: str) -> bool:
        patterns = upstream.packages
        return not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)

    for architecture in upstream.architectures:
        say(f"reading {upstream.suite} for {architecture}")
        (index,) = load_indexes([source], store, architecture)
        for file in index.files:
            for package in read_packages(file.path, wanted, repository=_ID):
                key = (package.name, package.architecture)
                if key not in chosen or sort_key(chosen[key].version) < sort_key(package.version):
                    chosen[key] = package
    _all_found(chosen.values(), upstream.packages)
    known = [p for p in chosen.values() if repo.catalogue.pooled(p.sha256)]
    missing = [p for p in chosen.values() if not repo.catalogue.pooled(p.sha256)]
    total = sum(p.size for p in missing)
    say(f"fetching {len(missing)} packages ({total >> 20} MiB), {len(known)} are here")
    fetch_all(missing, _lock(index, missing), store)
    with repo.scratch() as scratch:
        paths = []
        for number, package in enumerate([*missing, *known]):
            # `add` copies: a link to the file in the store, or in the pool, is enough here.
            path = scratch / f"{number}-{package.name}.deb"
            item = repo.catalogue.item(package.sha256)
            blob = store.blob_path(package.sha256)
            path.symlink_to(
                repo.public / item.path if item is not None and package in known else blob
            )
            paths.append(path)
        say(f"adding {len(paths)} packages")
        return add(repo, channel, paths, allow_downgrade=allow_downgrade)


def _all_found(chosen: object, patterns: Sequence[str]) -> None:
    names = {p.name for p in chosen}  # type: ignore[attr-defined]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise RepositoryError(f"the suite has no package {pattern}")
    if not names:
        raise UsageError("the suite has no packages for these architectures")


def _lock(index: SuiteIndex, packages: Sequence[LockedPackage]) -> Lock:
    """Return what `fetch_all` needs to know of where the packages are."""
    repository = LockedRepository(
        id=_ID,
        uri=index.source.mirror.url,
        suite=index.source.suite,
        components=index.source.components,
        inrelease_sha256=index.inrelease_sha256,
        date=index.release.date,
    )
    return Lock("", "", index.release.date, (repository,), tuple(packages), ())
