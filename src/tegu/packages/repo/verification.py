"""A repository seen as its clients see it: signatures, age, every index, every package."""

from __future__ import annotations

import hashlib
import io
import posixpath
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from tegu.errors import TeguError, UsageError, VerifyError
from tegu.packages.release import (
    Release,
    check_release,
    parse_release,
    verify_detached,
    verify_signature,
)
from tegu.packages.repo.apt_index import BY_HASH
from tegu.packages.repo.place import Place
from tegu.packages.repo.repository import Repository

__all__ = ["Checked", "Report", "verify", "verify_own"]

Say = Callable[[str], None]
_MAX_SIGNED = 16 << 20
_MAX_INDEX = 1 << 30
_ARCHITECTURES = ("x86_64", "aarch64", "i386", "ppc64le", "s390x", "riscv64", "loongarch64")


@dataclass(frozen=True, slots=True)
class Checked:
    """A channel or snapshot that was looked at; moments are seconds since the epoch."""

    name: str
    side: str
    packages: int
    date: int
    valid_until: int | None


@dataclass
class Report:
    """What was looked at, and every `problem` that was found (one line each)."""

    checked: list[Checked] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    orphans: int = 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A package file that an index promises."""

    path: str
    size: int
    sha256: str


def verify_own(
    repo: Repository, names: Sequence[str] = (), *, packages: bool = True, say: Say = lambda _: None
) -> Report:
    """Verify what `repo` has published against its own signers, and against its catalogue."""
    from tegu.packages.repo.sign import load_signers

    there = [c for c in repo.catalogue.collections() if c.published is not None]
    for name in names:
        repo.collection(name)
    wanted = [c for c in there if not names or c.name in names]
    if missing := sorted(set(names) - {c.name for c in wanted}):
        raise VerifyError(f"{missing[0]} was never published", hint="tegu repo publish")
    if not wanted:
        raise VerifyError(f"{repo.root}: nothing was published yet", hint="tegu repo publish")
    with tempfile.TemporaryDirectory(prefix="tegu-repo-") as home:
        keyring = Path(home) / "keyring.gpg"
        keyring.write_bytes(load_signers(repo.settings.signers, repo.root).public)
        report = verify(
            repo.public.as_uri(),
            [c.name for c in wanted],
            [str(keyring)],
            packages=packages,
            not_before={
                c.name: c.published for c in wanted if c.origin is None and c.published is not None
            },
            say=say,
        )
    report.orphans = len(repo.orphans())
    return report


def verify(
    url: str,
    names: Sequence[str],
    keyrings: Sequence[str],
    *,
    packages: bool = True,
    not_before: dict[str, int] | None = None,
    now: int | None = None,
    say: Say = lambda _: None,
) -> Report:
    """Look at the channels or snapshots `names` below `url` (http, https or file).

    With `packages` every package is read and hashed. `not_before` (seconds since the epoch, by
    name) is the oldest date that an index may have: an older one was replayed. Problems are
    collected, not raised.
    """
    if not names:
        raise UsageError("no channel was named", hint="for example: --channel stable")
    report = Report()
    moment = int(time.time()) if now is None else now
    with Place(url) as place:
        look = _Look(place, keyrings, moment, packages, not_before or {}, report, say)
        for name in names:
            look.apt(name)
            look.rpm(name)
    return report


@dataclass
class _Look:
    place: Place
    keyrings: Sequence[str]
    now: int
    packages: bool
    not_before: dict[str, int]
    report: Report
    say: Say
    hashed: dict[str, bool] = field(default_factory=dict)

    def apt(self, name: str) -> None:
        base = f"dists/{name}"
        where = self.place.shown(f"{base}/InRelease")
        self.say(f"verifying {where}")
        try:
            text = verify_signature(
                self.place.read(f"{base}/InRelease", _MAX_SIGNED), self.keyrings, where=where
            )
            release = parse_release(text, where=where)
            check_release(release, name, now=self.now, where=where)
            self._not_replayed(name, release.date, where)
        except TeguError as e:
            self._problem(e)
            return
        wanted: dict[str, _Wanted] = {}
        for path, (size, sha256) in sorted(release.files.items()):
            if posixpath.splitext(path)[1] not in _UNPACK:
                continue  # announced only, so that what is decompressed can be checked
            try:
                plain = self._index(base, path, size, sha256, release)
                wanted.update((w.path, w) for w in _stanzas(plain, where))
            except TeguError as e:
                self._problem(e)
        self._pool(wanted)
        self.report.checked.append(
            Checked(name, "apt", len(wanted), release.date, release.valid_until)
        )

    def _not_replayed(self, name: str, date: int, where: str) -> None:
        oldest = self.not_before.get(name)
        if oldest is not None and date < oldest:
            raise VerifyError(
                f"{where}: older than what was published last: an old one was put back"
            )

    def _index(self, base: str, path: str, size: int, sha256: str, release: Release) -> bytes:
        folder = posixpath.dirname(path)
        content = b""
        for there in (f"{base}/{folder}/{BY_HASH}/{sha256}", f"{base}/{path}"):
            content = self.place.read(there, max(size, 1) * 2)
            self._same(there, (len(content), _sha256(content)), (size, sha256))
        stem, form = posixpath.splitext(path)
        plain = _UNPACK[form](content)
        if (expected := release.files.get(stem)) is not None:
            got = (len(plain), _sha256(plain))
            self._same(f"{base}/{path} (decompressed)", got, expected)
        return plain

    def _same(self, path: str, got: tuple[int, str], expected: tuple[int, str]) -> None:
        if got != expected:
            raise VerifyError(
                f"{self.place.shown(path)}: not what the signed index announces "
                f"({got[0]} bytes, SHA-256 {got[1][:16]}...; "
                f"announced {expected[0]}, {expected[1][:16]}...)"
            )

    def rpm(self, name: str) -> None:
        listed = self.place.folders(f"rpm/{name}")
        for base in _ARCHITECTURES if listed is None else listed:
            folder = f"rpm/{name}/{base}"
            if listed is not None or self.place.has(f"{folder}/repodata/repomd.xml"):
                try:
                    self._rpm_one(name, folder)
                except TeguError as e:
                    self._problem(e)

    def _rpm_one(self, name: str, folder: str) -> None:
        from tegu.packages.repo.rpm_read import read_primary, read_repomd

        where = self.place.shown(f"{folder}/repodata/repomd.xml")
        self.say(f"verifying {where}")
        text = self.place.read(f"{folder}/repodata/repomd.xml", _MAX_SIGNED)
        signature = self.place.read(f"{folder}/repodata/repomd.xml.asc", _MAX_SIGNED)
        verify_detached(text, signature, self.keyrings, where=where)
        date, records = read_repomd(text, name, where)
        self._not_replayed(name, date, where)
        wanted: dict[str, _Wanted] = {}
        for record in records:
            content = self.place.read(f"{folder}/{record.path}", record.size * 2)
            got = (len(content), _sha256(content))
            self._same(f"{folder}/{record.path}", got, (record.size, record.sha256))
            plain = _unpack_gzip(content)
            self._same(
                f"{folder}/{record.path} (decompressed)",
                (len(plain), _sha256(plain)),
                (record.open_size, record.open_sha256),
            )
            if record.kind == "primary":
                for href, size, sha256 in read_primary(plain, where):
                    path = posixpath.normpath(posixpath.join(folder, unquote(href)))
                    wanted[path] = _Wanted(path, size, sha256)
        self._pool(wanted)
        self.report.checked.append(Checked(name, folder, len(wanted), date, None))

    def _pool(self, wanted: dict[str, _Wanted]) -> None:
        for file in wanted.values():
            if not self.packages or file.path in self.hashed:
                continue
            try:
                got = self.place.digest(file.path, max(file.size, 1) * 2)
                self._same(file.path, got, (file.size, file.sha256))
                self.hashed[file.path] = True
            except TeguError as e:
                self.hashed[file.path] = False
                self._problem(e)

    def _problem(self, error: TeguError) -> None:
        self.report.problems.append(error.message)


def _stanzas(plain: bytes, where: str) -> list[_Wanted]:
    found = []
    for text in plain.decode("utf-8", "surrogateescape").split("\n\n"):
        if not text.strip():
            continue
        fields = dict(
            line.split(": ", 1)
            for line in text.splitlines()
            if line[:1] not in " \t" and ": " in line
        )
        try:
            found.append(_Wanted(fields["Filename"], int(fields["Size"]), fields["SHA256"]))
        except (KeyError, ValueError) as e:
            raise VerifyError(f"{where}: an entry of its index has no {e}") from e
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _unpack_gzip(content: bytes) -> bytes:
    """Decompress all members, to a bound."""
    import gzip

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as f:
            plain = f.read(_MAX_INDEX + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise VerifyError(f"an index cannot be decompressed: {e}") from e
    if len(plain) > _MAX_INDEX:
        raise VerifyError("an index is larger than 1 GiB when decompressed")
    return plain


def _unpack_zstd(content: bytes) -> bytes:
    import zstandard

    try:
        reader = zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(content), read_across_frames=True
        )
        plain: bytes = reader.read(_MAX_INDEX + 1)
    except zstandard.ZstdError as e:
        raise VerifyError(f"an index cannot be decompressed: {e}") from e
    if len(plain) > _MAX_INDEX:
        raise VerifyError("an index is larger than 1 GiB when decompressed")
    return plain


_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": _unpack_gzip, ".zst": _unpack_zstd}
