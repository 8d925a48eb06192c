"""Every version of a binary package that the indexes of a definition have, and one of them fetched.

A lock has one version of each package; who looks for the version that broke something needs all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import FetchError, VerifyError
from tegu.packages.fetch import fetch_all
from tegu.packages.index import load_indexes
from tegu.packages.lock import Lock, LockedPackage, LockedRepository
from tegu.packages.sources import sources_of
from tegu.packages.version import sort_key

if TYPE_CHECKING:
    from tegu.definition import Definition
    from tegu.store import Store

__all__ = ["Version", "fetch_version", "find_versions", "parse_binary", "read_packages"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = "repository"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a package: what it is, and the repository that has it."""

    package: LockedPackage
    uri: str
    suite: str


def find_versions(
    definition: Definition, pattern: str, store: Store, architecture: str, *, offline: bool = False
) -> list[Version]:
    """Return all that match `pattern` (fnmatch: "linux-image-*-cloud-amd64"), oldest first.

    `architecture` is dpkg's name. The same version in several suites counts once. Raises FetchError
    when there is none, VerifyError when an index is not as it was signed.
    """
    found: dict[tuple[str, str], Version] = {}
    for index in load_indexes(sources_of(definition), store, architecture, offline=offline):
        for file in index.files:
            for package in read_packages(file.path, lambda name: fnmatchcase(name, pattern)):
                known = Version(package, index.source.uri, index.source.suite)
                found.setdefault((package.name, package.version), known)
    if not found:
        raise FetchError(
            f"no suite of the definition has a package {pattern}", hint="`*` stands for anything"
        )
    return sorted(found.values(), key=lambda v: sort_key(v.package.version))


def fetch_version(version: Version, store: Store) -> Path:
    """Bring the package into the store; returns its path. Raises FetchError, VerifyError."""
    repository = LockedRepository(_ID, version.uri, version.suite, (), "", 0)
    lock = Lock("", version.package.architecture, 0, (repository,), (), ())
    fetch_all([version.package], lock, store)
    path = store.blob(version.package.sha256)
    assert path is not None, "fetch_all brings all or raises"
    return path


def read_packages(
    path: Path, wanted: Callable[[str], bool], *, repository: str = _ID
) -> Iterator[LockedPackage]:
    """Yield the packages of the Packages file `path` whose names are `wanted`.

    Raises VerifyError when the entry of one of them is malformed; others are passed over.
    """
    with path.open(encoding="utf-8", errors="replace") as f:
        for stanza in _stanzas(f):
            name = next((v for v in stanza if v.startswith("Package:")), "").partition(":")[2]
            if wanted(name.strip()):
                yield parse_binary("".join(stanza), repository)


def _stanzas(lines: Iterable[str]) -> Iterator[list[str]]:
    stanza: list[str] = []
    for line in lines:
        if line != "\n":
            stanza.append(line)
        elif stanza:
            yield stanza
            stanza = []
    if stanza:
        yield stanza


def parse_binary(stanza: str, repository: str = _ID) -> LockedPackage:
    """Return the package that a stanza of a Packages file describes; VerifyError when it is none.

    Format: deb822(5), https://wiki.debian.org/DebianRepository/Format#A.22Packages.22_Indices.
    """
    fields = {}
    for line in stanza.splitlines():
        key, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t")):
            fields[key] = value.strip()
    name, version = fields.get("Package", ""), fields.get("Version", "")
    filename, size = fields.get("Filename", ""), fields.get("Size", "")
    if not name or not version or not _SHA256.fullmatch(fields.get("SHA256", "")):
        raise VerifyError(f"the index of packages has an entry without a checksum: {name or '?'}")
    if not size.isascii() or not size.isdigit() or len(size) > 15:
        raise VerifyError(f"the index of packages: {name}: no size: {size!r}")
    if not filename or filename.startswith("/") or ".." in filename.split("/"):
        raise VerifyError(f"the index of packages: {name}: its file lies elsewhere")
    return LockedPackage(
        name=name,
        version=version,
        architecture=fields.get("Architecture", ""),
        size=int(size),
        sha256=fields["SHA256"],
        filename=filename,
        repository=repository,
        source=fields.get("Source", name).partition(" ")[0],
        source_version=version,
    )
