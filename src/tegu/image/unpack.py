"""One .deb becomes one unpacked package in the store, with a record of every file in it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import xxhash

from tegu.errors import BuildError, VerifyError
from tegu.image.xz import LIBRARY, XzDecoder, library_of
from tegu.packages.deb import XzReader, open_deb
from tegu.packages.deb_streams import Memory
from tegu.packages.lock import LockedPackage
from tegu.store import Store

__all__ = ["KIND", "Entry", "Unpacked", "content_hash", "open_unpacked", "unpack_missing"]

_PART = 1 << 18
_JOB = struct.Struct("=i")

KIND = "packages-1"  # raise it when what is recorded changes


@dataclass(frozen=True, slots=True)
class Entry:
    """A path of a package: `kind` is d, f, l (symbolic link) or h (hard link to `target`).

    `path` is relative, without a leading slash; `digest` is the XXH3-128 of a file's content.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    digest: str
    target: str


@dataclass(frozen=True)
class Unpacked:
    """A package in the store: `root/` as its files lie, `control/`, and its record."""

    package: LockedPackage
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @cached_property
    def _record(self) -> tuple[dict[str, str], dict[str, str], list[Entry]]:
        raw = json.loads((self.directory / "record.json").read_bytes())
        return raw["fields"], raw["control"], [Entry(*e) for e in raw["entries"]]

    @property
    def fields(self) -> dict[str, str]:
        """The control file's fields (deb-control(5))."""
        return self._record[0]

    @property
    def control(self) -> dict[str, str]:
        """The other control members (maintainer scripts, conffiles, triggers ...) as text."""
        return self._record[1]

    @property
    def entries(self) -> list[Entry]:
        return self._record[2]

    @cached_property
    def conffiles(self) -> list[str]:
        """Absolute paths of conffiles (deb-conffiles(5)); those flagged for removal left out."""
        lines = self.control.get("conffiles", "").splitlines()
        return [line for line in lines if line.startswith("/")]

    def damage(self) -> str | None:
        """Compare every file with its record; returns what is wrong, or None."""
        for entry in self.entries:
            if entry.kind != "f":
                continue
            path = self.root / entry.path
            try:
                if content_hash(path) != entry.digest:
                    return f"{entry.path} of {self.package.name} has changed"
            except OSError as e:
                return f"{entry.path} of {self.package.name}: {e.strerror}"
        return None


def content_hash(path: Path | str) -> str:
    """Return the XXH3-128 (hex) of a file's content: against rot, not against an attacker."""
    fd = os.open(path, os.O_RDONLY)
    try:
        whole = os.read(fd, _PART)
        if len(whole) < _PART and not os.read(fd, 1):  # nearly every file
            return xxhash.xxh3_128_hexdigest(whole)
        digest = xxhash.xxh3_128(whole)
        os.lseek(fd, len(whole), os.SEEK_SET)
        while chunk := os.read(fd, _PART):
            digest.update(chunk)
    finally:
        os.close(fd)
    return digest.hexdigest()


def open_unpacked(store: Store, package: LockedPackage) -> Unpacked | None:
    """Return the unpacked package if the store has it."""
    tree = store.tree(KIND, package.sha256)
    return Unpacked(package, tree) if tree is not None else None


def unpack_missing(
    store: Store,
    packages: Sequence[LockedPackage],
    *,
    tools: Sequence[LockedPackage] = (),
    workers: int | None = None,
) -> list[str]:
    """Unpack those of `packages` that are not in the store yet; returns their names.

    Their .debs must be in the store. Decompresses with the library among `tools` where that runs.
    Runs as root of a user namespace, so that owners are kept.
    """
    missing = [p for p in packages if store.tree(KIND, p.sha256) is None]
    missing.sort(key=lambda p: (-p.size, p.name))  # the largest first: workers end together
    workers = min(workers or os.cpu_count() or 1, len(missing))
    if not missing:
        return []
    if len(missing) > 1:
        for package in tools:
            if package.name == LIBRARY and store.tree(KIND, package.sha256) is None:
                unpack(store, package)
    library = library_of(store, KIND, tools)
    # The queue is a file of numbers whose position all workers share: each takes the next.
    jobs = os.memfd_create("jobs")
    try:
        os.write(jobs, b"".join(_JOB.pack(n) for n in range(len(missing))))
        os.lseek(jobs, 0, os.SEEK_SET)
        if workers == 1:
            _unpack_share(jobs, store, missing, library)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
                shares = [
                    pool.submit(_unpack_share, jobs, store, missing, library)
                    for _ in range(workers)
                ]
                for share in shares:
                    share.result()
    finally:
        os.close(jobs)
    return sorted(p.name for p in missing)


def _unpack_share(
    jobs: int, store: Store, packages: Sequence[LockedPackage], library: Path | None
) -> None:
    """Unpack packages whose numbers come from the file `jobs`, to its end."""
    with XzDecoder.started(library) as decoder:
        while len(job := os.read(jobs, _JOB.size)) == _JOB.size:
            package = packages[_JOB.unpack(job)[0]]
            if store.tree(KIND, package.sha256) is None:
                unpack(store, package, decoder.decode if decoder is not None else None)


def unpack(store: Store, package: LockedPackage, xz: XzReader | None = None) -> None:
    """Unpack one .deb into the store."""
    deb = store.blob(package.sha256)
    if deb is None:
        raise BuildError(f"{package.name} {package.version} has not been downloaded")
    with deb.open("rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != package.sha256:
            store.drop_blob(package.sha256)
            raise VerifyError(f"{package.name}: the stored .deb is damaged and was dropped")
    with store.new_tree(KIND, package.sha256) as tree, open_deb(deb, xz=xz) as archive:
        root = tree / "root"
        root.mkdir(mode=0o755)
        entries = _extract(archive.data(), root)
        record = {
            "fields": dict(archive.fields),
            "control": dict(archive.control),
            "entries": [
                [e.path, e.kind, e.mode, e.uid, e.gid, e.size, e.digest, e.target] for e in entries
            ],
        }
        (tree / "record.json").write_text(json.dumps(record, separators=(",", ":")))


Members = Iterable[tuple[tarfile.TarInfo, IO[bytes] | None]]


def _extract(members: Members, root: Path) -> list[Entry]:
    entries: list[Entry] = []
    base = os.fspath(root)
    for info, content in members:
        path = info.name.removeprefix("./").strip("/")
        if path in ("", "."):
            continue
        full = f"{base}/{path}"
        mode = stat.S_IMODE(info.mode)
        kind, size, digest, target = "f", 0, "", ""
        if info.isdir():
            kind = "d"
            try:
                os.mkdir(full)  # noqa: PTH102 - thousands of times
            except OSError:  # it is there, or its parent is not
                os.makedirs(full, exist_ok=True)  # noqa: PTH103
            if info.uid or info.gid:
                os.chown(full, info.uid, info.gid)
            if mode != 0o755:
                os.chmod(full, mode)  # noqa: PTH101
        elif info.issym():
            kind, target = "l", info.linkname
            os.symlink(target, full)  # noqa: PTH211
            if info.uid or info.gid:
                os.chown(full, info.uid, info.gid, follow_symlinks=False)
            os.utime(full, (info.mtime, info.mtime), follow_symlinks=False)
        elif info.islnk():
            kind, target = "h", info.linkname.removeprefix("./").lstrip("/")
            os.link(f"{base}/{target}", full)
        elif info.isreg() and content is not None:
            size, digest = _write(full, content, info)
        else:
            raise BuildError(f"package holds a special file: /{path}", hint="not in a package")
        entries.append(Entry(path, kind, mode, info.uid, info.gid, size, digest, target))
    return entries


def _write(full: str, content: IO[bytes], info: tarfile.TarInfo) -> tuple[int, str]:
    """Write one file with its owner, mode and time, in as few system calls as that takes."""
    digest = xxhash.xxh3_128()
    size = 0
    mode = stat.S_IMODE(info.mode)
    fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        chunk: bytes | memoryview
        while chunk := content.whole if isinstance(content, Memory) else content.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            while written := os.write(fd, chunk):
                if written == len(chunk):
                    break
                chunk = chunk[written:]
            if isinstance(content, Memory):
                break
        if info.uid or info.gid:
            os.fchown(fd, info.uid, info.gid)
        if mode & 0o7022:  # what the umask or the change of owner took away
            os.fchmod(fd, mode)
        os.utime(fd, (info.mtime, info.mtime))
    finally:
        os.close(fd)
    return size, digest.hexdigest()
