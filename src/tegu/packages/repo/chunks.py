"""Index files, compressed in pieces, so that a change costs the pieces it touches.

The stanzas of an index are cut into chunks of about a hundred, at places that the packages' names
decide: a package more changes one chunk. Compressed chunks are kept in the catalogue by their
content. A file is their concatenation: members of gzip (RFC 1952, section 2.2) and frames of
Zstandard (RFC 8878, section 3.1) may follow each other. Streams of xz may as well, but apt 2.6
reads the first one only, so there is no .xz.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tegu.packages.repo.catalogue import Catalogue

__all__ = ["FORMS", "IndexFile", "assemble"]

FORMS = (".gz", ".zst")
_CUT = 96
"""A chunk ends where the checksum of a name is divisible by this: its mean length in packages."""


@dataclass(frozen=True, slots=True)
class IndexFile:
    """An index: SHA-256 and size (bytes) of what it says, and its compressed forms by ending."""

    sha256: str
    size: int
    forms: dict[str, bytes]


def assemble(
    catalogue: Catalogue,
    scope: str,
    entries: Sequence[tuple[str, bytes]],
    *,
    head: bytes = b"",
    tail: bytes = b"",
    forms: Sequence[str] = FORMS,
) -> IndexFile:
    """Return the index of `entries` (a package's name, its text), in their order.

    `scope` names the index; what it needed the last time and does no longer is forgotten. Must be
    called within `catalogue.change()`.
    """
    chunks = [chunk for chunk in [head, *_cut(entries), tail] if chunk]
    keys = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
    have = {
        str(key): (gz, zst)
        for key, gz, zst in catalogue.query("SELECT key, gz, zst FROM chunk WHERE scope=?", scope)
    }
    compress = _zstd() if ".zst" in forms else None
    pieces: list[tuple[object, object]] = []
    new = []
    for key, chunk in zip(keys, chunks, strict=True):
        piece = have.get(key)
        if piece is None:
            piece = (
                gzip.compress(chunk, 7, mtime=0),
                compress(chunk) if compress is not None else b"",
            )
            have[key] = piece
            new.append((scope, key, *piece))
        pieces.append(piece)
    catalogue.run("INSERT OR REPLACE INTO chunk VALUES (?,?,?,?)", new)
    catalogue.run(
        "DELETE FROM chunk WHERE scope=? AND key=?", [(scope, k) for k in have.keys() - set(keys)]
    )
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    joined = {form: b"".join(p[at] for p in pieces) for at, form in enumerate(FORMS)}  # type: ignore[misc]
    return IndexFile(
        sha256=digest.hexdigest(),
        size=sum(map(len, chunks)),
        forms={form: joined[form] or _empty(form) for form in forms},
    )


def _cut(entries: Sequence[tuple[str, bytes]]) -> Iterator[bytes]:
    part: list[bytes] = []
    for name, text in entries:
        if part and zlib.crc32(name.encode()) % _CUT == 0:
            yield b"".join(part)
            part = []
        part.append(text)
    if part:
        yield b"".join(part)


def _zstd() -> Callable[[bytes], bytes]:
    import zstandard

    return zstandard.ZstdCompressor(level=12, write_checksum=True).compress


def _empty(form: str) -> bytes:
    return gzip.compress(b"", mtime=0) if form == ".gz" else _zstd()(b"")
