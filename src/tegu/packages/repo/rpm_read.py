"""Reading rpm-md as a client does: repomd.xml, and the list of packages."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import VerifyError
from tegu.packages.repo.rpm_item import createrepo

__all__ = ["Record", "read_primary", "read_repomd"]

_PLAIN = re.compile(r"repodata/[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Record:
    """One file of the metadata: sizes in bytes, `open` for what it holds decompressed."""

    kind: str
    path: str
    size: int
    sha256: str
    open_size: int
    open_sha256: str


def read_repomd(text: bytes, name: str, where: str) -> tuple[int, list[Record]]:
    """Return the date (seconds since the epoch) and the files that a repomd.xml names.

    Raises VerifyError when it is none, or not of the channel or snapshot `name`.
    """
    cr = createrepo()
    with tempfile.TemporaryDirectory(prefix="tegu-repo-") as home:
        path = Path(home) / "repomd.xml"
        path.write_bytes(text)
        try:
            repomd = cr.Repomd(str(path))
        except Exception as e:
            raise VerifyError(f"{where}: not a repomd.xml: {e}") from e
    tags = [str(tag).rpartition(" ")[2] for tag in repomd.repo_tags]
    if name not in tags:
        raise VerifyError(f"{where}: asked for {name}, got an index of {', '.join(tags) or '?'}")
    records = []
    for record in repomd.records:
        if not _PLAIN.fullmatch(record.location_href or ""):
            raise VerifyError(f"{where}: odd path {record.location_href!r}")
        if record.checksum_type != "sha256" or not record.checksum or not record.checksum_open:
            raise VerifyError(f"{where}: {record.type} has no SHA-256")
        records.append(
            Record(
                record.type,
                record.location_href,
                record.size,
                record.checksum,
                record.size_open,
                record.checksum_open,
            )
        )
    revision = repomd.revision or ""
    return int(revision) if revision.isdigit() else 0, records


def read_primary(text: bytes, where: str) -> list[tuple[str, int, str]]:
    """Return path (relative to the repository), size and SHA-256 of every package."""
    cr = createrepo()
    found: list[tuple[str, int, str]] = []

    def take(package: object) -> None:
        href, size, sha256 = (
            getattr(package, name) for name in ("location_href", "size_package", "pkgId")
        )
        found.append((href, size, sha256))

    with tempfile.TemporaryDirectory(prefix="tegu-repo-") as home:
        path = Path(home) / "primary.xml"
        path.write_bytes(text)
        try:
            cr.xml_parse_primary(str(path), pkgcb=take, do_files=False)
        except Exception as e:
            raise VerifyError(f"{where}: its list of packages cannot be read: {e}") from e
    return found
