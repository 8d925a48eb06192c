"""Source packages: found in the signed index of a suite, brought into the store, verified.

Format of a Sources stanza: https://wiki.debian.org/DebianRepository/Format#A.22Sources.22_Indices.
The chain is InRelease (signed), Sources (its SHA-256 in InRelease), the files of the package (their
SHA-256 in Sources). What was verified once is noted in the store under the keys that vouched for
it, so that a version which the suite has replaced since can still be built while a mirror's pool or
the store has its files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import FetchError, VerifyError
from tegu.files import write_atomic
from tegu.packages.fetch import fetch_all
from tegu.packages.index import SOURCES, SuiteIndex, load_indexes
from tegu.packages.lock import Lock, LockedPackage, LockedRepository
from tegu.packages.sources import Source, sources_of
from tegu.packages.version import sort_key

if TYPE_CHECKING:
    from tegu.definition.models import Definition
    from tegu.store import Store

__all__ = ["SourceFile", "SourcePackage", "fetch_source", "find_source", "mirrors_of"]

KIND = "sources-2"
_FILE = re.compile(r"([0-9a-f]{64}) (\d+) ([A-Za-z0-9][A-Za-z0-9.+~_-]*)")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source package, its size in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SourcePackage:
    """A source package: its files lie in `directory` below a repository.

    `mirrors` are the URIs of repositories to try, the likeliest first; they are where the package
    may come from, no part of what it is.
    """

    name: str
    version: str
    directory: str
    files: tuple[SourceFile, ...]
    mirrors: tuple[str, ...] = ()

    def file(self, ending: str) -> SourceFile:
        """Return the file whose name ends so (".dsc"); VerifyError when there is none."""
        for file in self.files:
            if file.name.endswith(ending):
                return file
        raise VerifyError(f"the source package {self.name} {self.version} has no {ending}")


def find_source(
    definition: Definition,
    name: str,
    store: Store,
    *,
    version: str | None = None,
    offline: bool = False,
) -> SourcePackage:
    """Return the source package `name`, in `version` or the newest of the definition's suites.

    Raises FetchError when no suite has it, naming the versions that there are.
    """
    sources = [s for s in sources_of(definition) if s.base]
    keys = _keys(sources)
    note = store.small(KIND, f"{name}_{version}_{keys}.json") if version else None
    if note is not None and (known := _read_note(note)) is not None:
        return replace(known, mirrors=mirrors_of(definition))
    indexes = load_indexes(sources, store, SOURCES, offline=offline)
    found = [p for index in indexes for p in _in_index(index, name)]
    if version is not None:
        wanted = [p for p in found if p.version == version]
    else:
        wanted = sorted(found, key=lambda p: sort_key(p.version))[-1:]
    if not wanted:
        there = sorted({p.version for p in found}, key=sort_key)
        listed = ", ".join(there[-5:]) or "none"
        asked = f"{name} {version}" if version else name
        raise FetchError(
            f"no suite of the definition has the source package {asked}",
            hint=f"the versions that there are: {listed}",
        )
    package = wanted[0]
    others = (uri for uri in mirrors_of(definition) if uri not in package.mirrors)
    package = replace(package, mirrors=(*package.mirrors, *others))
    path = store.small(KIND, f"{name}_{package.version}_{keys}.json")
    write_atomic(path, json.dumps(asdict(replace(package, mirrors=())), sort_keys=True))
    return package


def mirrors_of(definition: Definition) -> tuple[str, ...]:
    """Return the URIs of a definition's base repositories, those of security updates first.

    What is fixed to one version is most often a security update.
    """
    base = [s for s in sources_of(definition) if s.base]
    ordered = sorted(base, key=lambda s: not s.suite.endswith("-security"))
    return tuple(dict.fromkeys(s.uri for s in ordered))


def fetch_source(
    package: SourcePackage,
    store: Store,
    progress: Callable[[str, int], None] | None = None,
    *,
    offline: bool = False,
) -> dict[str, Path]:
    """Bring the files of `package` into the store; returns their paths by name.

    `progress(file, bytes)` is called for each piece that arrives. With `offline` nothing is
    fetched. Raises FetchError (no mirror has it, or the store lacks a file), VerifyError.
    """
    lacking = [file for file in package.files if store.blob(file.sha256) is None]
    if lacking and offline:
        raise FetchError(
            f"{lacking[0].name} of {package.name} {package.version} is not in the store",
            hint="run it once without --offline",
        )
    if lacking:
        _fetch(package, store, progress or _silent)
    paths = {}
    for file in package.files:
        path = store.blob(file.sha256)
        assert path is not None, "all is there, or it was raised"
        paths[file.name] = path
    return paths


def _fetch(package: SourcePackage, store: Store, progress: Callable[[str, int], None]) -> None:
    """Try each mirror; the pool of security updates and the main one name directories unlike."""
    failure: FetchError | None = None
    gone = 0
    places = [(uri, d) for uri in package.mirrors for d in _directories(package.directory)]
    for uri, directory in places:
        locked = [_locked(package, file, directory) for file in package.files]
        repository = LockedRepository("source", uri, "", (), "", 0)
        lock = Lock("", SOURCES, 0, (repository,), (), ())
        try:
            fetch_all(locked, lock, store, lambda p, size: progress(p.name, size))
        except FetchError as e:
            gone += "not on the mirror" in e.message
            failure = failure or e
            continue
        return
    if failure is not None and gone < len(places):
        raise failure
    raise FetchError(
        f"{package.name} {package.version} is not on the mirror any more"
        if len(package.mirrors) == 1
        else f"no mirror has {package.name} {package.version} any more",
        hint="the suite has replaced it: name a mirror that keeps old versions (a snapshot "
        "archive), or build a newer version",
    ) from failure


def _directories(directory: str) -> tuple[str, ...]:
    """Return where else a pool may have it: "pool/updates/main/l/linux", "pool/main/l/linux"."""
    if directory.startswith("pool/updates/"):
        return directory, directory.replace("pool/updates/", "pool/", 1)
    if directory.startswith("pool/"):
        return directory, directory.replace("pool/", "pool/updates/", 1)
    return (directory,)


def _keys(sources: Sequence[Source]) -> str:
    """Hash the keys that may vouch for a package: another keyring is another word for it."""
    digest = hashlib.sha256()
    for path in sorted({k for s in sources for k in s.keyrings}):
        try:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        except OSError:
            digest.update(path.encode())  # the signature's check says what is wrong with it
    return digest.hexdigest()[:16]


def _silent(name: str, size: int) -> None:
    """Report nothing."""


def _locked(package: SourcePackage, file: SourceFile, directory: str) -> LockedPackage:
    return LockedPackage(
        name=file.name,
        version=package.version,
        architecture=SOURCES,
        size=file.size,
        sha256=file.sha256,
        filename=f"{directory}/{file.name}",
        repository="source",
        source=package.name,
        source_version=package.version,
    )


def _in_index(index: SuiteIndex, name: str) -> Iterator[SourcePackage]:
    head = f"Package: {name}\n"
    for file in index.files:
        # The name is the first field; looking for it first spares splitting 60 MB of stanzas.
        text = file.path.read_text(encoding="utf-8", errors="replace")
        start = 0 if text.startswith(head) else text.find("\n\n" + head)
        while start >= 0:
            end = text.find("\n\n", start + 2)
            stanza = text[start : end if end >= 0 else len(text)].strip("\n")
            package = parse_stanza(stanza)
            yield replace(package, mirrors=(index.source.uri,))
            start = text.find("\n\n" + head, end) if end >= 0 else -1


def parse_stanza(stanza: str) -> SourcePackage:
    """Return the package that a stanza of a Sources file describes; VerifyError when it is none."""
    fields: dict[str, list[str]] = {}
    key = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t"):
            if key:
                fields[key].append(line.strip())
        else:
            key, _, value = line.partition(":")
            fields[key] = [value.strip()] if value.strip() else []
    try:
        name, version = fields["Package"][0], fields["Version"][0]
        directory, lines = fields["Directory"][0], fields["Checksums-Sha256"]
    except (KeyError, IndexError) as e:
        raise VerifyError(f"the index of sources has an entry without {e}") from e
    files = []
    for line in lines:
        match = _FILE.fullmatch(" ".join(line.split()))
        if match is None:
            raise VerifyError(f"the index of sources: {name}: malformed file {line!r}")
        files.append(SourceFile(match[3], int(match[2]), match[1]))
    if directory.startswith("/") or ".." in directory.split("/"):
        raise VerifyError(f"the index of sources: {name}: its directory leads elsewhere")
    return SourcePackage(name, version, directory, tuple(files))


def _read_note(path: Path) -> SourcePackage | None:
    try:
        raw = json.loads(path.read_text())
        return parse_stanza(
            f"Package: {raw['name']}\nVersion: {raw['version']}\nDirectory: {raw['directory']}\n"
            "Checksums-Sha256:\n"
            + "".join(f" {f['sha256']} {f['size']} {f['name']}\n" for f in raw["files"])
        )
    except (OSError, ValueError, KeyError, TypeError, VerifyError):
        return None
