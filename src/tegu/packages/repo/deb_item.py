"""What the indexes say of a Debian package, read from the file once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tegu.errors import RepositoryError
from tegu.packages.deb import open_deb
from tegu.packages.repo.catalogue import Item

__all__ = ["read_deb", "stanza"]

# Debian Policy, sections 5.6.7 and 5.6.12, and deb-version(7); other names do not go into paths.
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"(?:[0-9]+:)?[0-9A-Za-z][A-Za-z0-9.+~-]*")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]*")
# Fields that the repository gives; a package that brings its own would be lying about itself.
_OURS = frozenset({"filename", "size", "md5sum", "sha1", "sha256", "sha512", "description-md5"})


def read_deb(path: Path, sha256: str, size: int) -> Item:
    """Read the package at `path`; raises VerifyError when it is damaged, or has odd names."""
    with open_deb(path) as deb:
        fields = deb.fields
    name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
    source = fields.get("Source", name).partition(" ")[0]
    for what, value, pattern in (
        ("Package", name, _NAME),
        ("Version", version, _VERSION),
        ("Architecture", arch, _ARCHITECTURE),
        ("Source", source, _NAME),
    ):
        if not pattern.fullmatch(value):
            raise RepositoryError(f"{path}: {what}: {value!r} is none (Debian Policy, 5.6)")
    shown = version.partition(":")[2] or version
    prefix = source[:4] if source.startswith("lib") else source[:1]
    return Item(
        sha256=sha256,
        kind="deb",
        name=name,
        version=version,
        arch=arch,
        source=source,
        size=size,
        path=f"pool/deb/{prefix}/{source}/{name}_{shown}_{arch}.deb",
        meta=_control(fields),
    )


def _control(fields: Mapping[str, str]) -> bytes:
    lines = [f"{key}: {value}" for key, value in fields.items() if key.lower() not in _OURS]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def stanza(item: Item, percent: int = 100) -> bytes:
    """Return the entry of `item` in a Packages file, with the empty line that ends it.

    With `percent` below 100 apt upgrades only so many of a hundred machines to it, chosen by a hash
    of machine id, source and version (`APT::Get::Phase-Policy`; apt 2.1.16).
    """
    about = f"\nFilename: {item.path}\nSize: {item.size}\nSHA256: {item.sha256}\n"
    if percent < 100:
        about += f"Phased-Update-Percentage: {percent}\n"
    return item.meta + about.encode() + b"\n"
