"""What the indexes say of an RPM package: createrepo_c reads its header, once.

The file's own framing is checked here first, because createrepo_c reads no further than the header:
https://rpm-software-management.github.io/rpm/manual/format_v4.html.
"""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import IO

from tegu.errors import RepositoryError, UnsupportedError, VerifyError
from tegu.packages.repo.catalogue import Item

__all__ = ["KINDS", "createrepo", "fragments", "read_rpm"]

KINDS = ("primary", "filelists", "other")
"""The files of rpm-md, and the fragments that an item holds for each."""

_PLACE = "@@tegu-path@@"
_LEAD = b"\xed\xab\xee\xdb"
_HEADER = b"\x8e\xad\xe8\x01"
_LEAD_SIZE = 96
_MAX_SIGNATURE = 64 << 20
_SIZE, _LONG_SIZE = 1000, 270  # RPMSIGTAG_SIZE, RPMSIGTAG_LONGSIZE: of header and payload
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~^-]*")


def createrepo() -> ModuleType:
    """Return the module createrepo_c; raises UnsupportedError where it is missing."""
    try:
        import createrepo_c
    except ImportError as e:
        raise UnsupportedError(
            "RPM packages need the Python module createrepo_c",
            hint="pip install 'tegu[repo]'",
        ) from e
    module: ModuleType = createrepo_c
    return module


def read_rpm(path: Path, sha256: str, size: int) -> Item:
    """Read the package at `path`; raises VerifyError when it is no RPM package or cut short."""
    _check_framing(path)
    cr = createrepo()
    try:
        package = cr.package_from_rpm(
            str(path), cr.SHA256, location_href=_PLACE, changelog_limit=10
        )
    except (OSError, ValueError) as e:
        raise VerifyError(f"{path}: its RPM header cannot be read") from e
    if package.pkgId != sha256:
        raise VerifyError(f"{path}: it changed while it was read")
    package.time_file = package.time_build  # of the content, not of our copy of it
    name, arch = package.name, package.arch
    for what, value in (
        ("name", name),
        ("version", package.version),
        ("release", package.release),
        ("architecture", arch),
    ):
        if not value or not _SAFE.fullmatch(value):
            raise RepositoryError(f"{path}: {value!r} is no {what} that can be published")
    if not package.rpm_sourcerpm:
        arch = "src"
    epoch = package.epoch or "0"
    source = (package.rpm_sourcerpm or name).rsplit("-", 2)[0]
    if not _SAFE.fullmatch(source):
        raise RepositoryError(f"{path}: {source!r} is no source package's name")
    meta = {
        "primary": cr.xml_dump_primary(package),
        "filelists": cr.xml_dump_filelists(package),
        "other": cr.xml_dump_other(package),
    }
    release = f"{package.version}-{package.release}"
    return Item(
        sha256=sha256,
        kind="rpm",
        name=name,
        version=release if epoch == "0" else f"{epoch}:{release}",
        arch=arch,
        source=source,
        size=size,
        path=f"pool/rpm/{source[:1].lower()}/{source}/{name}-{release}.{arch}.rpm",
        meta=json.dumps(meta).encode(),
    )


def fragments(item: Item, up: str) -> dict[str, bytes]:
    """Return the XML of `item` for each of KINDS; `up` leads from the repository to the pool."""
    meta: dict[str, str] = json.loads(item.meta)
    from urllib.parse import quote

    place = quote(f"{up}{item.path}", safe="/~+:=@,%-._^")
    meta["primary"] = meta["primary"].replace(_PLACE, place, 1)
    return {kind: meta[kind].encode() for kind in KINDS}


def _check_framing(path: Path) -> None:
    """Refuse what is no RPM package, or not as long as its signature header says."""
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            start, expected = _signature(f, path)
    except OSError as e:
        raise VerifyError(f"{path}: {e.strerror or e}") from e
    if expected is not None and start + expected != size:
        what = "cut short" if size < start + expected else "longer than it says"
        raise VerifyError(f"{path}: {what} ({size} of {start + expected} bytes)")


def _signature(f: IO[bytes], path: Path) -> tuple[int, int | None]:
    """Return where the header begins, and the announced size of it with the payload."""
    if f.read(4) != _LEAD:
        raise VerifyError(f"{path}: not an RPM package")
    f.seek(_LEAD_SIZE)
    intro = f.read(16)
    if len(intro) < 16 or intro[:4] != _HEADER:
        raise VerifyError(f"{path}: its signature header is damaged or cut off")
    entries, length = struct.unpack(">II", intro[8:])
    if entries * 16 + length > _MAX_SIGNATURE:
        raise VerifyError(f"{path}: its signature header is damaged")
    index = f.read(entries * 16)
    data = f.read(length)
    if len(index) < entries * 16 or len(data) < length:
        raise VerifyError(f"{path}: cut short in its signature header")
    expected: int | None = None
    for at in range(0, len(index), 16):
        tag, _, offset, _ = struct.unpack(">IIiI", index[at : at + 16])
        form = {_SIZE: ">I", _LONG_SIZE: ">Q"}.get(tag)
        if form is None:
            continue
        if offset < 0 or offset + struct.calcsize(form) > length:
            raise VerifyError(f"{path}: its signature header is damaged")
        (expected,) = struct.unpack_from(form, data, offset)
    start = _LEAD_SIZE + 16 + entries * 16 + length
    return start + -start % 8, expected
