"""The package indexes of suites: fetched, verified, and kept in the store.

In the store, under `indexes/`: per suite `KEY.InRelease` and `KEY.json` (when it was fetched, and
what the server said to ask it again with); per index `SHA256.Packages`, uncompressed. Nothing is
written there before its signature or checksum holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import FetchError, StoreError, TeguError, UnsupportedError, VerifyError
from tegu.files import atomic_file, write_atomic
from tegu.packages.kinds import INDEXES
from tegu.packages.release import (
    Release,
    absent_index,
    check_release,
    parse_release,
    verify_signature,
)
from tegu.packages.sources import Source, join, without_credentials
from tegu.packages.transfer import client, local_path, refused, retrying

if TYPE_CHECKING:
    import httpx

    from tegu.store import Store

__all__ = ["SOURCES", "PackagesFile", "SuiteIndex", "load_indexes"]

log = logging.getLogger(__name__)

SOURCES = "source"
"""What `load_indexes` takes in place of an architecture to read the indexes of source packages."""

_MAX_INRELEASE = 16 << 20
_MAX_PACKAGES = 2 << 30
_CHUNK = 1 << 20
_UNUSED_AFTER = 30 * 86400  # seconds


@dataclass(frozen=True, slots=True)
class PackagesFile:
    """One Packages or Sources file (deb822 stanzas), uncompressed at `path`.

    `key` names its content.
    """

    component: str
    architecture: str
    key: str
    path: Path


@dataclass(frozen=True, slots=True)
class SuiteIndex:
    """A verified suite. `fetched` is when its InRelease came (seconds since the epoch)."""

    source: Source
    release: Release
    inrelease_sha256: str
    fetched: int
    files: tuple[PackagesFile, ...]


def load_indexes(
    sources: Sequence[Source], store: Store, architecture: str, *, offline: bool = False
) -> list[SuiteIndex]:
    """Return the verified index of each source for `architecture` (dpkg's name, "amd64").

    With `SOURCES` for an architecture it is the index of source packages.
    With `offline` only what is in the store is used. Raises FetchError when a mirror does not
    deliver, VerifyError when a signature, a checksum or the age of an index does not hold.
    """
    with ExitStack() as stack:
        web = None
        if not offline and any(local_path(s.mirror.url) is None for s in sources):
            web = stack.enter_context(client())
        loader = _Loader(store, architecture, web, offline=offline)
        with ThreadPoolExecutor(max_workers=4) as pool:
            futures = [pool.submit(loader.load, source) for source in sources]
            try:
                loaded = [future.result() for future in futures]
            except BaseException:
                loader.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        _prune(store, loaded)
        return loaded


def _prune(store: Store, loaded: Sequence[SuiteIndex]) -> None:
    """Drop indexes that no suite has led to for a month; they are large and soon out of date."""
    limit = time.time() - _UNUSED_AFTER
    for index in loaded:
        for file in index.files:
            with suppress(OSError):
                os.utime(file.path)
    for path in (store.root / INDEXES).glob("*.Packages"):
        try:
            if path.stat().st_mtime < limit:
                for beside in [*path.parent.glob(f"{path.stem}.*"), path]:
                    beside.unlink(missing_ok=True)
        except OSError:
            continue  # another process was faster


class _Loader:
    def __init__(
        self, store: Store, architecture: str, web: httpx.Client | None, *, offline: bool
    ) -> None:
        self.store = store
        self.architecture = architecture
        self.web = web
        self.offline = offline
        self.stop = threading.Event()

    def load(self, source: Source) -> SuiteIndex:
        key = hashlib.sha256(f"{source.base_url}\n".encode()).hexdigest()[:32]
        cached = self.store.small(INDEXES, f"{key}.InRelease")
        notes = _read_notes(self.store.small(INDEXES, f"{key}.json"))
        where = without_credentials(f"{source.base_url}/InRelease")
        if self.offline:
            if not cached.exists():
                raise FetchError(f"{where}: not in the store", hint="run it once without --offline")
            content = cached.read_bytes()
            fetched = int(notes.get("fetched", cached.stat().st_mtime))
            log.warning("%s: offline, using the index of %s ago", source.id, _age(fetched))
        else:
            headers = _conditions(notes) if cached.exists() else {}
            fetched = int(time.time())
            answer = self._get(f"{source.base_url}/InRelease", _MAX_INRELEASE, headers)
            content = cached.read_bytes() if answer.unchanged else answer.content
            notes = {**(notes if answer.unchanged else answer.notes), "fetched": fetched}
        release = parse_release(
            verify_signature(content, source.keyrings, where=where), where=where
        )
        self._judge_age(release, source, fetched, where)
        if not self.offline:
            # Only now, when it is verified, and the notes last: they vouch for the file.
            if not cached.exists() or cached.read_bytes() != content:
                write_atomic(cached, content)
            write_atomic(
                self.store.small(INDEXES, f"{key}.json"), json.dumps(notes, sort_keys=True)
            )
        files = tuple(
            self._packages(source, release, component, architecture, where)
            for component, architecture in self._wanted(source, release)
        )
        return SuiteIndex(source, release, hashlib.sha256(content).hexdigest(), fetched, files)

    def _judge_age(self, release: Release, source: Source, fetched: int, where: str) -> None:
        # An archived index is judged at its moment, a cached one at the moment it came.
        now = fetched if source.snapshot is None else max(source.snapshot, release.date)
        try:
            check_release(release, source.suite, now=now, where=where)
        except VerifyError:
            if not source.mirror.lenient:
                raise
            # The suite's name is judged in any case, only its age is not.
            check_release(
                release,
                source.suite,
                now=max(release.date, min(now, release.valid_until or now)),
                where=where,
            )
            log.warning("%s: its age does not hold, but apt on this machine ignores that", where)

    def _wanted(self, source: Source, release: Release) -> Iterator[tuple[str, str]]:
        if source.suite.endswith("/"):
            yield "", self.architecture
            return
        for component in source.components:
            yield component, self.architecture
            if self.architecture == SOURCES:
                continue
            if release.separate_all and any(
                name.startswith(f"{component}/binary-all/Packages") for name in release.files
            ):
                yield component, "all"

    def _packages(
        self, source: Source, release: Release, component: str, architecture: str, where: str
    ) -> PackagesFile:
        stem = _stem(component, architecture)
        forms = [form for form in _FORMS if stem + form in release.files]
        if not forms:
            raise absent_index(where, component, architecture)
        plain = release.files.get(stem)
        key = plain[1] if plain else f"from-{release.files[stem + forms[0]][1]}"
        path = self.store.small(INDEXES, f"{key}.Packages")
        if path.exists() and plain and _sha256(path) != plain[1]:
            log.warning("%s is damaged and was dropped", path)
            path.unlink(missing_ok=True)
        if not path.exists():
            if self.offline:
                raise FetchError(
                    f"{where}: the index {stem} is not in the store",
                    hint="run it once without --offline",
                )
            self._fetch_packages(source, release, stem, forms, path)
        return PackagesFile(component, architecture, key, path)

    def _fetch_packages(
        self, source: Source, release: Release, stem: str, forms: Sequence[str], path: Path
    ) -> None:
        last: TeguError | None = None
        for form in forms:
            size, sha256 = release.files[stem + form]
            urls = [join(source.base_url, stem + form)]
            if release.by_hash:
                folder = stem.rpartition("/")[0]
                name = f"{folder}/by-hash/SHA256/{sha256}".lstrip("/")
                urls.insert(0, join(source.base_url, name))
            for url in urls:
                try:
                    content = self._get(url, size, {}).content
                except FetchError as e:
                    last = last or e  # wrong content elsewhere tells more than "not here"
                    continue
                if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
                    last = VerifyError(
                        f"{without_credentials(url)}: not what the signed index announces "
                        f"({len(content)} of {size} bytes)",
                        hint="the mirror may be in the middle of an update: try again later",
                    )
                    continue
                _unpack(content, form, path, release.files.get(stem), without_credentials(url))
                return
        raise last or FetchError(f"{source.base_url}/{stem}: not there")

    def _get(self, url: str, limit: int, headers: dict[str, str]) -> _Answer:
        """Return what is at `url`, at most `limit` bytes of it."""
        path = local_path(url)
        if path is not None:
            try:
                with path.open("rb") as f:
                    return _Answer(f.read(limit + 1), {})
            except OSError as e:
                raise FetchError(
                    f"{url}: {e.strerror}", hint="is it the directory above dists/?"
                ) from e
        web = self.web
        if web is None:
            raise UnsupportedError(f"{without_credentials(url)} is no http, https or file URL")

        def attempt() -> _Answer:
            with web.stream("GET", url, headers=headers) as response:
                if response.status_code == 304:
                    return _Answer(b"", {}, unchanged=True)
                refused(response, url)
                body = bytearray()
                for chunk in response.iter_raw(_CHUNK):
                    body += chunk
                    if len(body) > limit:
                        break
                notes = {k: v for k in ("etag", "last-modified") if (v := response.headers.get(k))}
                return _Answer(bytes(body), notes)

        return retrying(url, attempt, stop=self.stop)


def _stem(component: str, architecture: str) -> str:
    """Return an index's path in its suite, without the ending of a compressed form."""
    if architecture == SOURCES:
        return f"{component}/source/Sources" if component else "Sources"
    return f"{component}/binary-{architecture}/Packages" if component else "Packages"


@dataclass(frozen=True, slots=True)
class _Answer:
    content: bytes
    notes: dict[str, Any]
    unchanged: bool = False


def _unzstd() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as e:
        raise UnsupportedError("reading .zst needs the Python module zstandard") from e
    return zstandard.ZstdDecompressor().decompressobj()


_FORMS: dict[str, Callable[[], Any] | None] = {
    ".zst": _unzstd,
    ".xz": lzma.LZMADecompressor,
    ".gz": lambda: zlib.decompressobj(wbits=31),
    "": None,
}
"""How to read each compressed form of an index, cheapest to fetch and read first."""


def _unpack(
    content: bytes, form: str, path: Path, plain: tuple[int, str] | None, where: str
) -> None:
    """Write the decompressed index to `path`, checked against its own sum where announced."""
    make = _FORMS[form]
    limit = plain[0] if plain else _MAX_PACKAGES
    digest = hashlib.sha256()
    written = 0
    try:
        with atomic_file(path) as f:
            unpacker = make() if make else None
            for start in range(0, len(content), _CHUNK):
                piece = content[start : start + _CHUNK]
                data = piece
                if make is not None:
                    data, unpacker = _decompress(piece, unpacker, make)
                written += len(data)
                if written > limit:
                    raise VerifyError(f"{where}: larger than announced when decompressed")
                digest.update(data)
                f.write(data)
            if plain and (written, digest.hexdigest()) != plain:
                raise VerifyError(f"{where}: decompressed, it is not what the index announces")
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from e
    except (lzma.LZMAError, zlib.error) as e:
        raise VerifyError(f"{where}: cannot be decompressed: {e}") from e


def _decompress(piece: bytes, unpacker: Any, make: Callable[[], Any]) -> tuple[bytes, Any]:
    """Return what `piece` holds, and the decompressor for the next one.

    Members, frames or streams may follow each other in one file (RFC 1952, RFC 8878, xz).
    """
    parts = []
    while piece:
        parts.append(unpacker.decompress(piece))
        if not unpacker.eof:
            break
        piece, unpacker = unpacker.unused_data, make()
    return b"".join(parts), unpacker


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _read_notes(path: Path) -> dict[str, Any]:
    try:
        notes = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _conditions(notes: dict[str, Any]) -> dict[str, str]:
    headers = {}
    if isinstance(etag := notes.get("etag"), str):
        headers["If-None-Match"] = etag
    if isinstance(modified := notes.get("last-modified"), str):
        headers["If-Modified-Since"] = modified
    return headers


def _age(since: int) -> str:
    minutes = max(0, int(time.time()) - since) // 60
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes // 60} hours" if minutes < 60 * 48 else f"{minutes // 1440} days"
