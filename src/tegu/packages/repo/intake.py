"""Taking packages in: copied, hashed and read in one pass, judged together, then in the pool.

Nothing of a refused call stays. A package whose content is known is not read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tegu.errors import RepositoryError, UsageError
from tegu.packages.repo.catalogue import Item
from tegu.packages.repo.repository import Repository, disk_error
from tegu.packages.repo.versions import newer_than, sort_key

__all__ = ["Added", "add", "sync"]

Progress = Callable[[Path], None]
_CHUNK = 1 << 20
_SUFFIXES = (".deb", ".rpm", ".udeb")
_FEW = 16
"""So many files are synced one by one; for more, the whole file system once is quicker."""


@dataclass(frozen=True, slots=True)
class Added:
    """What a channel got: `new` packages, those `known` from elsewhere, and what had to `leave`."""

    new: tuple[Item, ...]
    known: tuple[Item, ...]
    left: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class _Arrival:
    origin: Path
    item: Item
    here: Path | None
    """The copy, or None when the pool has it already."""


def add(
    repo: Repository,
    channel: str,
    paths: Sequence[Path],
    *,
    allow_downgrade: bool = False,
    progress: Progress | None = None,
) -> Added:
    """Put the packages at `paths` (files, or directories of them) into `channel`.

    Raises RepositoryError for a version that is there with other content or would go backwards,
    VerifyError for a damaged package, StoreError when the disk is full. The caller holds the lock.
    """
    repo.channel(channel)
    files = _files(paths)
    with repo.scratch() as scratch:
        arrivals = _receive(repo, files, scratch, progress)
        arrivals = _judge(repo, arrivals)
        entering = [a.item for a in arrivals]
        left = _backwards(repo, channel, entering, allow_downgrade=allow_downgrade)
        new = [a for a in arrivals if a.here is not None]
        try:
            _into_pool(repo, new)
            with repo.catalogue.change():
                repo.catalogue.put(a.item for a in new)
                repo.catalogue.enter(channel, [i.sha256 for i in entering])
                repo.catalogue.leave(channel, [i.sha256 for i in left])
        except BaseException:
            for arrival in new:
                if not repo.catalogue.pooled(arrival.item.sha256):
                    (repo.public / arrival.item.path).unlink(missing_ok=True)
            raise
    known = tuple(a.item for a in arrivals if a.here is None)
    return Added(tuple(a.item for a in new), known, tuple(left))


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
            if not inside:
                raise UsageError(f"{path}: no .deb or .rpm in it")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{path}: not there")
    return found


def _receive(
    repo: Repository, files: Sequence[Path], scratch: Path, progress: Progress | None
) -> list[_Arrival]:
    def one(numbered: tuple[int, Path]) -> _Arrival:
        number, path = numbered
        copy = scratch / str(number)
        sha256, size = _copy(path, copy)
        item = repo.catalogue.item(sha256)
        if item is None:
            item = _read(path, copy, sha256, size)
        here: Path | None = copy
        if repo.catalogue.pooled(sha256):
            copy.unlink()
            here = None
        if progress is not None:
            progress(path)
        return _Arrival(path, item, here)

    if len(files) == 1:
        return [one((0, files[0]))]
    # Copying and hashing leave the interpreter's lock; reading headers does not.
    pool = ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1))
    try:
        return list(pool.map(one, enumerate(files)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _copy(path: Path, copy: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as source, copy.open("wb") as target:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
                size += len(chunk)
            os.fchmod(target.fileno(), 0o644)
    except OSError as e:
        raise disk_error(e, path if e.filename == str(path) else copy) from e
    return digest.hexdigest(), size


def _read(path: Path, copy: Path, sha256: str, size: int) -> Item:
    """Read the copy, which nobody changes; messages name the file that was given."""
    from tegu.errors import TeguError

    try:
        if path.suffix == ".rpm":
            from tegu.packages.repo.rpm_item import read_rpm

            return read_rpm(copy, sha256, size)
        from tegu.packages.repo.deb_item import read_deb

        return read_deb(copy, sha256, size)
    except TeguError as e:
        e.message = e.message.replace(str(copy), str(path))
        e.args = (e.message,)
        raise


def _judge(repo: Repository, arrivals: Sequence[_Arrival]) -> list[_Arrival]:
    """Refuse a version with other content; give every new file a path of its own."""
    seen: dict[tuple[str, str, str, str], _Arrival] = {}
    paths: set[str] = set()
    judged: list[_Arrival] = []
    for arrival in arrivals:
        item = arrival.item
        identity = (item.kind, item.name, item.version, item.arch)
        if (twin := seen.get(identity)) is not None:
            if twin.item.sha256 != item.sha256:
                raise _other_content(item, arrival.origin, str(twin.origin), twin.item.sha256)
            continue  # the same file given twice
        before = repo.catalogue.same_version(item)
        if before is not None and before.sha256 != item.sha256:
            raise _other_content(item, arrival.origin, "the repository", before.sha256)
        if arrival.here is not None and before is None:
            if item.path in paths or repo.catalogue.path_taken(item.path):
                # The same version with another epoch: file names do not show epochs.
                path = Path(item.path)
                item = replace(
                    item, path=f"{path.parent}/{path.stem}.{item.sha256[:8]}{path.suffix}"
                )
            paths.add(item.path)
            arrival = replace(arrival, item=item)  # noqa: PLW2901
        seen[identity] = arrival
        judged.append(arrival)
    return judged


def _other_content(item: Item, origin: Path, other: str, sha256: str) -> RepositoryError:
    return RepositoryError(
        f"{origin}: {item.shown} has SHA-256 {item.sha256[:16]}..., but {other} has that version "
        f"with {sha256[:16]}...",
        hint="a version never changes its content: build it again with a higher version",
    )


def _backwards(
    repo: Repository, channel: str, entering: Iterable[Item], *, allow_downgrade: bool
) -> list[Item]:
    """Return what is newer in the channel than the newest that enters, if that may be."""
    newest: dict[tuple[str, str, str], Item] = {}
    for item in entering:
        key = (item.kind, item.name, item.arch)
        if key not in newest or sort_key(newest[key]) < sort_key(item):
            newest[key] = item
    left = []
    for item in newest.values():
        for there in repo.catalogue.versions(channel, item.kind, item.name):
            if there.arch == item.arch and newer_than(there, item):
                if not allow_downgrade:
                    raise RepositoryError(
                        f"{item.shown} would go backwards: {channel} has {there.version}",
                        hint="with --allow-downgrade the newer one leaves the channel",
                    )
                left.append(there)
    return left


def _into_pool(repo: Repository, arrivals: Sequence[_Arrival]) -> None:
    """Make the copies last, then move them to where the indexes will say they are."""
    if len(arrivals) > _FEW:
        from tegu.linux import libc

        handle = os.open(repo.tmp, os.O_RDONLY)
        try:
            libc.syncfs(handle)
        finally:
            os.close(handle)
    folders = set()
    for arrival in arrivals:
        assert arrival.here is not None
        if len(arrivals) <= _FEW:
            sync(arrival.here)
        target = repo.public / arrival.item.path
        if target.parent not in folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
        arrival.here.rename(target)
    if len(arrivals) <= _FEW:
        for folder in folders:
            sync(folder)


def sync(path: Path) -> None:
    """Bring a file or directory to the disk (fsync(2))."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
