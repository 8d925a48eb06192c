"""Writing a binary package, deb(5), so that the same content gives the same bytes.

Members are sorted and belong to root:root, no time is later than `timestamp`, and the ar headers
carry no more than they must. With compression "stored" (gzip's format, its bytes as they are) the
result depends on no compressor's version either.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tegu.errors import UnsupportedError, UsageError
from tegu.files import atomic_file

__all__ = ["Compression", "DebEntry", "stored_gzip", "with_parents", "write_deb"]

Compression = Literal["none", "stored", "gz", "xz", "zst"]
_SCRIPTS = frozenset({"preinst", "postinst", "prerm", "postrm", "config"})


@dataclass(frozen=True, slots=True)
class DebEntry:
    """One member of a package: `path` is absolute in the system ("/usr/bin/tegu").

    Exactly one of `content` (a file), `target` (a symbolic link) and neither (a directory).
    """

    path: str
    content: bytes | None = None
    target: str | None = None
    mode: int | None = None

    @property
    def permissions(self) -> int:
        """`mode`, or what files, links and directories usually have."""
        if self.mode is not None:
            return self.mode
        return 0o644 if self.content is not None else 0o777 if self.target is not None else 0o755


def write_deb(
    out: Path,
    control: Mapping[str, str],
    files: Iterable[DebEntry],
    *,
    timestamp: int,
    scripts: Mapping[str, str] | None = None,
    conffiles: Sequence[str] = (),
    compression: Compression = "xz",
) -> Path:
    """Write a package to `out` and return it.

    `control` has the fields in the order in which they are to be; Installed-Size is added.
    `scripts` has maintainer scripts and other control members (`triggers`, ...) by name.
    `timestamp` is in seconds since the epoch. Raises UsageError when something does not fit.
    """
    entries = with_parents(files)
    for path in conffiles:
        if entries.get(path) is None or entries[path].content is None:
            raise UsageError(f"conffile {path} is not a file of the package")
    members: dict[str, bytes] = {}
    fields = dict(control)
    description = fields.pop("Description", None)
    fields["Installed-Size"] = str(_installed_size(entries.values()))
    if description is not None:
        fields["Description"] = description  # last, as is usual: it has several lines
    members["control"] = _fields(fields)
    members["md5sums"] = _md5sums(entries)
    if conffiles:
        members["conffiles"] = "".join(f"{path}\n" for path in sorted(conffiles)).encode()
    for name, text in (scripts or {}).items():
        members[name] = text.encode()
    control_entries = {
        f"/{name}": DebEntry(f"/{name}", content, mode=0o755 if name in _SCRIPTS else 0o644)
        for name, content in members.items()
    }
    suffix, compress = _COMPRESSORS[compression]
    with atomic_file(out) as f:
        f.write(b"!<arch>\n")
        for name, body in (
            ("debian-binary", b"2.0\n"),
            (f"control.tar{suffix}", compress(_tar(control_entries, timestamp))),
            (f"data.tar{suffix}", compress(_tar(entries, timestamp))),
        ):
            f.write(
                f"{name:<16}{timestamp:<12}{0:<6}{0:<6}{0o100644:<8o}{len(body):<10}`\n".encode()
            )
            f.write(body + b"\n" * (len(body) & 1))
    return out


def with_parents(files: Iterable[DebEntry]) -> dict[str, DebEntry]:
    """Return the entries by path, with the directories above them.

    Raises UsageError for a path that is odd, is there twice, or lies below what is no directory.
    """
    entries: dict[str, DebEntry] = {}
    for entry in files:
        path = entry.path
        if not path.startswith("/") or path != "/" + "/".join(Path(path).parts[1:]):
            raise UsageError(f"the path {path!r} in a package must be absolute and plain")
        if ".." in Path(path).parts:
            raise UsageError(f"the path {path!r} in a package leads elsewhere")
        if path in entries:
            raise UsageError(f"the path {path!r} is in the package twice")
        entries[path] = entry
    for path in list(entries):
        for parent in list(Path(path).parents)[:-1]:
            made = entries.setdefault(str(parent), DebEntry(str(parent)))
            if made.content is not None or made.target is not None:
                raise UsageError(f"{path!r} lies below {parent}, which is no directory")
    return entries


def _installed_size(entries: Iterable[DebEntry]) -> int:
    """Return KiB as dpkg-gencontrol(1) counts them: files rounded up, one for all else."""
    return sum(max(1, -(-len(e.content) // 1024)) if e.content is not None else 1 for e in entries)


def _fields(fields: Mapping[str, str]) -> bytes:
    lines = []
    for key, value in fields.items():
        for extra in value.split("\n")[1:]:
            if not extra.startswith((" ", "\t")):
                raise UsageError(f"the control field {key} has a line that is no continuation")
        lines.append(f"{key}: {value}\n")
    return "".join(lines).encode()


def _md5sums(entries: Mapping[str, DebEntry]) -> bytes:
    return "".join(
        f"{hashlib.md5(e.content, usedforsecurity=False).hexdigest()}  {path[1:]}\n"
        for path, e in sorted(entries.items())
        if e.content is not None
    ).encode()


def _tar(entries: Mapping[str, DebEntry], timestamp: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        # Sorted by parts, so that a directory comes right before what is in it.
        for path in ["/", *sorted(entries, key=lambda p: p.split("/"))]:
            entry = entries.get(path, DebEntry("/"))
            info = tarfile.TarInfo("./" if path == "/" else f".{path}")
            info.mode = entry.permissions
            info.mtime = timestamp
            info.uname = info.gname = "root"
            if entry.content is not None:
                info.size = len(entry.content)
                tar.addfile(info, io.BytesIO(entry.content))
                continue
            if entry.target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.target
            else:
                info.type = tarfile.DIRTYPE
            tar.addfile(info)
    return buffer.getvalue()


def _zstd(data: bytes) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError as e:
        raise UnsupportedError("writing .zst needs the Python module zstandard") from e
    return zstandard.ZstdCompressor(level=19).compress(data)


def stored_gzip(data: bytes) -> bytes:
    """Return `data` as a gzip file (RFC 1952) of stored blocks (RFC 1951, section 3.2.4).

    Any gunzip reads it; unlike a compressor's output its bytes follow from `data` alone.
    """
    out = [b"\x1f\x8b\x08\x00" + struct.pack("<I", 0) + b"\x02\xff"]
    starts = range(0, len(data), _STORED_BLOCK) or range(1)
    for start in starts:
        block = data[start : start + _STORED_BLOCK]
        last = start + _STORED_BLOCK >= len(data)
        out.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    out.append(struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF))
    return b"".join(out)


_STORED_BLOCK = 0xFFFF
_COMPRESSORS: dict[Compression, tuple[str, Callable[[bytes], bytes]]] = {
    "none": ("", bytes),
    "stored": (".gz", stored_gzip),
    "gz": (".gz", lambda data: gzip.compress(data, 9, mtime=0)),
    "xz": (".xz", lambda data: lzma.compress(data, preset=6)),
    "zst": (".zst", _zstd),
}
