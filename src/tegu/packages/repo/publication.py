"""Publication: the indexes of each channel that changed, put in place in one step.

A channel's new directory is written aside, with the by-hash files that clients of the old index may
still ask for, brought to the disk, and exchanged with the live one (renameat2(2), RENAME_EXCHANGE):
whoever reads sees the old or the new, at every moment and after every crash. Files of the pool are
there before, and stay for `keep_hours` after the last index that named them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tegu.files import write_atomic
from tegu.linux import libc
from tegu.packages.repo.apt_index import About, write_apt
from tegu.packages.repo.catalogue import Collection, Item
from tegu.packages.repo.intake import sync
from tegu.packages.repo.repository import Repository
from tegu.packages.repo.sign import Signers, load_signers, signed_text

__all__ = ["Published", "publish"]

Say = Callable[[str], None]
_FORMAT = 1
"""Part of each index's digest: raise it when the same packages give other indexes."""
_WRITERS = "dists", "rpm"


@dataclass(frozen=True, slots=True)
class Published:
    """What a call did: channels and snapshots `written`, those that were `current`.

    `dropped` are files of the pool that nobody needs any more.
    """

    written: tuple[str, ...]
    current: tuple[str, ...]
    dropped: int


def publish(
    repo: Repository,
    names: Sequence[str] = (),
    *,
    force: bool = False,
    now: int | None = None,
    say: Say = lambda _: None,
) -> Published:
    """Write the indexes of what changed (all channels and new snapshots, or those of `names`).

    A channel that did not change is written anew when half of its validity is over, or with
    `force`. With `force` a snapshot is signed anew, by the signers of now; what it says stays.
    Raises RepositoryError when a key is lost or expired, StoreError when the disk is full; what is
    published stays as it is then. The caller holds the lock.
    """
    moment = int(time.time()) if now is None else now
    wanted = [repo.collection(n) for n in names] if names else _all(repo)
    signers = load_signers(repo.settings.signers, repo.root)
    _write_keyring(repo, signers)
    written, current = [], []
    for collection in wanted:
        digest = _digest(repo, collection.name, signers)
        if not force and _is_current(repo, collection, digest, moment):
            current.append(collection.name)
            continue
        say(f"publishing {collection.name}")
        if collection.origin is not None and collection.published is not None:
            _sign_anew(repo, collection.name, signers)
        else:
            _publish_one(repo, collection, signers, digest, moment)
        written.append(collection.name)
    dropped = _drop_unused(repo, moment)
    return Published(tuple(written), tuple(current), dropped)


def _all(repo: Repository) -> list[Collection]:
    return [
        c
        for c in repo.catalogue.collections()
        if c.origin is not None or c.name in repo.settings.channels
    ]


def _digest(repo: Repository, name: str, signers: Signers) -> str:
    about = repo.settings
    digest = hashlib.sha256(
        repr(
            (_FORMAT, about.name, about.description, about.architectures, signers.identity)
        ).encode()
    )
    for sha256, percent in repo.catalogue.query(
        "SELECT sha256, percent FROM member WHERE collection = ? ORDER BY sha256", name
    ):
        digest.update(str(sha256).encode())
        if percent != 100:
            digest.update(f" {percent}".encode())
    return digest.hexdigest()


def _is_current(repo: Repository, collection: Collection, digest: str, now: int) -> bool:
    if collection.published is None or not _live(repo, "dists", collection.name).is_dir():
        return False
    if collection.origin is not None:
        return True  # a snapshot is written once
    half = repo.settings.valid_days * 86400 / 2
    return collection.digest == digest and collection.published + half > now


def _live(repo: Repository, side: str, name: str) -> Path:
    return repo.public / side / name


def _publish_one(
    repo: Repository, collection: Collection, signers: Signers, digest: str, now: int
) -> None:
    snapshot = collection.origin is not None
    valid = None if snapshot else now + int(repo.settings.valid_days * 86400)
    # A snapshot says the same whenever it is signed: its date is that of its making.
    about = About(collection.name, collection.created if snapshot else now, valid)
    members = repo.catalogue.members(collection.name, meta=True)
    with repo.scratch() as scratch, repo.catalogue.change():
        for side in _WRITERS:
            items = [i for i in members if i.kind == ("deb" if side == "dists" else "rpm")]
            live = _live(repo, side, collection.name)
            if not items and side == "rpm" and not live.exists():
                continue
            new = scratch / side
            new.mkdir()
            current = _write_side(repo, side, items, about, signers, new)
            _keep_old(repo, live, new, current, now)
            _sync_tree(new)
            _swap(new, live)
        repo.catalogue.run(
            "UPDATE collection SET digest = ?, published = ? WHERE name = ?",
            [(digest, now, collection.name)],
        )


def _sign_anew(repo: Repository, name: str, signers: Signers) -> None:
    """Replace the signatures of a snapshot; not one byte of what is signed changes."""
    with repo.scratch() as scratch:
        for side in _WRITERS:
            live = _live(repo, side, name)
            if not live.is_dir():
                continue
            new = scratch / side
            shutil.copytree(live, new, copy_function=os.link)
            if side == "dists":
                text = signed_text((live / "InRelease").read_text())
                write_atomic(new / "InRelease", signers.clear_sign(text))
            for repomd in new.glob("*/repodata/repomd.xml"):
                signature = signers.detach_sign(repomd.read_bytes())
                write_atomic(repomd.with_name("repomd.xml.asc"), signature)
            _swap(new, live)


def _write_side(
    repo: Repository, side: str, items: list[Item], about: About, signers: Signers, new: Path
) -> set[str]:
    if side == "dists":
        return write_apt(repo, items, about, signers, new)
    from tegu.packages.repo.rpm_index import write_rpm

    return write_rpm(repo, items, about, signers, new)


def _keep_old(repo: Repository, live: Path, new: Path, current: Iterable[str], now: int) -> None:
    """Link into `new` what clients of older indexes may still ask for, and note its age."""
    limit = now - int(repo.settings.keep_hours * 3600)
    names = set(current)
    prefix = live.relative_to(repo.public).as_posix()
    since = {
        str(path): int(str(at))
        for path, at in repo.catalogue.query(
            "SELECT path, at FROM replaced WHERE path >= ? AND path < ?",
            *(f"{prefix}/", f"{prefix}0"),  # "0" comes after "/"
        )
    }
    forgotten = [f"{prefix}/{name}" for name in names]
    fresh = []
    for path in _data_files(live):
        name = path.relative_to(live).as_posix()
        if name in names:
            continue
        key = f"{prefix}/{name}"
        if key not in since:
            fresh.append((key, now))
        elif since[key] < limit:
            forgotten.append(key)
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).hardlink_to(path)
    repo.catalogue.run("INSERT OR REPLACE INTO replaced VALUES (?, ?)", fresh)
    repo.catalogue.run("DELETE FROM replaced WHERE path = ?", [(f,) for f in forgotten])


def _data_files(live: Path) -> list[Path]:
    """Return the files of a published directory that are named by their content."""
    return [*live.glob("*/*/by-hash/SHA256/*"), *live.glob("*/repodata/*-*.xml.gz")]


def _sync_tree(new: Path) -> None:
    """Bring files and directories to the disk; hard links to one file once."""
    files: dict[int, Path] = {}
    folders = []
    for folder, _, names in os.walk(new, topdown=False):
        folders.append(Path(folder))
        for name in names:
            path = Path(folder, name)
            status = path.stat()
            if status.st_nlink <= 2:  # more: also in the live directory, there since
                files.setdefault(status.st_ino, path)
    # At once, so that the file system's journal is written for all of them together.
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(sync, files.values()))
    for path in folders:
        sync(path)


def _swap(new: Path, live: Path) -> None:
    """Put `new` in the place of `live`; afterwards `new` is what `live` was."""
    live.parent.mkdir(parents=True, exist_ok=True)
    try:
        libc.exchange(str(new), str(live))
    except FileNotFoundError:
        new.rename(live)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _replace_files(new, live)
    sync(live.parent)


def _replace_files(new: Path, live: Path) -> None:
    """The same where directories cannot be exchanged (NFS): by-hash files first, InRelease last."""
    last = ("repomd.xml.asc", "repomd.xml", "InRelease")
    files = [p for p in new.rglob("*") if p.is_file()]
    data = {p for p in files if p.name not in last and not p.name.startswith("Packages")}

    def order(path: Path) -> tuple[int, int]:
        return (
            (0, 0) if path in data else (1, last.index(path.name) + 1 if path.name in last else 0)
        )

    for path in sorted(files, key=order):
        target = live / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    keep = {p.relative_to(new) for p in data}
    for path in _data_files(live):
        if path.relative_to(live) not in keep:
            path.unlink(missing_ok=True)


def _write_keyring(repo: Repository, signers: Signers) -> None:
    keyring = repo.public / "keyring.gpg"
    if not keyring.exists() or keyring.read_bytes() != signers.public:
        write_atomic(keyring, signers.public)
        write_atomic(repo.public / "keyring.asc", signers.armoured)


def _drop_unused(repo: Repository, now: int) -> int:
    """Remove files of the pool that were in no channel or snapshot for `keep_hours`."""
    catalogue = repo.catalogue
    limit = now - int(repo.settings.keep_hours * 3600)
    rows = catalogue.query(
        "SELECT sha256, path, unused FROM package WHERE pooled "
        "AND sha256 NOT IN (SELECT sha256 FROM member)"
    )
    catalogue.run(
        "UPDATE package SET unused = NULL WHERE unused IS NOT NULL "
        "AND sha256 IN (SELECT sha256 FROM member)",
        [()],
    )
    fresh = [(now, sha256) for sha256, _, unused in rows if unused is None]
    gone = [(sha256, path) for sha256, path, unused in rows if unused and int(str(unused)) < limit]
    if not fresh and not gone:
        return 0
    with catalogue.change():
        catalogue.run("UPDATE package SET unused = ? WHERE sha256 = ?", fresh)
        catalogue.run("UPDATE package SET pooled = 0 WHERE sha256 = ?", [(s,) for s, _ in gone])
    # After the note: what is interrupted here is an orphan of the pool, which the next run removes.
    for _, path in gone:
        file = repo.public / str(path)
        file.unlink(missing_ok=True)
        for parent in list(file.relative_to(repo.public).parents)[:2]:
            try:
                (repo.public / parent).rmdir()
            except OSError:
                break
    return len(gone)
