"""What a tree is, as one canonical table: every path, all metadata, contents by SHA-256.

The table's own SHA-256 is the tree's digest: two trees with the same digest are the same in all
that a file system image shows of them. Holes in files, access times and inode numbers do not count.

A record is nine fields, each ended by NUL: path, kind, mode (octal), uid, gid, modification time
(ns), size (bytes), content, extended attributes. Paths are bytes, sorted, the root `.` first.
Content is the SHA-256 of a file (hex), the target of a symbolic link, `MAJOR:MINOR` of a device, or
the first path of the same file (kind `h`, a hard link, whose other fields are empty).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UpgradeError, VerifyError

__all__ = ["Record", "Table", "TreeDigest", "digest_of", "file_digest", "parse_table", "read_table"]

_KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}
_FIELDS = 9
_SHA256 = re.compile(rb"[0-9a-f]{64}")
_DEVICE = re.compile(rb"(0|[1-9][0-9]{0,9}):(0|[1-9][0-9]{0,9})")
_XATTRS = re.compile(rb"(?:(?:[0-9a-f]{2})+=(?:[0-9a-f]{2})*(?:,(?=.)|$))*")
_OCTAL = re.compile(rb"0|[1-7][0-7]{0,3}")
_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,19}")
_LARGEST_ID = (1 << 32) - 2
_LARGEST_FILE = 1 << 40
_PATH_MAX = 4095
_NAME_MAX = 255


@dataclass(frozen=True, slots=True)
class TreeDigest:
    """A tree: SHA-256 of its table (hex), number of paths, bytes of all files' contents."""

    sha256: str
    entries: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """One path; see the module for what the fields are. `xattrs` are pairs of name and value."""

    path: bytes
    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    def encoded(self) -> bytes:
        """Return the record as bytes."""
        if self.kind == "h":
            numbers = [b""] * 5
        else:
            values = (f"{self.mode:o}", self.uid, self.gid, self.mtime_ns, self.size)
            numbers = [str(v).encode() for v in values]
        xattrs = b",".join(f"{n.hex()}={v.hex()}".encode() for n, v in self.xattrs)
        fields = (self.path, self.kind.encode(), *numbers, self.content, xattrs)
        return b"".join(field + b"\0" for field in fields)


@dataclass(frozen=True, slots=True)
class Table:
    """All records of a tree, in order."""

    records: tuple[Record, ...]

    def encoded(self) -> bytes:
        """Return the table as bytes, the same for the same tree."""
        return b"".join(record.encoded() for record in self.records)

    def digest(self) -> TreeDigest:
        """Return the digest of the tree."""
        size = sum(r.size for r in self.records if r.kind == "f")
        return TreeDigest(hashlib.sha256(self.encoded()).hexdigest(), len(self.records), size)


def digest_of(root: Path) -> TreeDigest:
    """Return the digest of the tree below `root`; every byte of it is read."""
    return read_table(root).digest()


def file_digest(path: str) -> bytes:
    """Return the SHA-256 of a file, as hex digits."""
    with open(path, "rb", buffering=0) as f:  # noqa: PTH123 - names are bytes of any kind
        return hashlib.file_digest(f, "sha256").hexdigest().encode()


def read_table(root: Path, say: Callable[[str], None] = lambda _: None) -> Table:
    """Read the tree below `root`, of one file system; what is mounted below shows empty.

    `root` must not change meanwhile: mount the file system a second time, read-only, if it is in
    use. Raises UpgradeError when something cannot be read.
    """
    try:
        found = sorted(_walk(os.fsencode(root)))
        say(f"reading {len(found)} paths")
        records: list[Record] = []
        first: dict[tuple[int, int], bytes] = {}
        for path, full in found:
            records.append(_record(path, full, first))
    except OSError as e:
        raise UpgradeError(f"{root}: the tree cannot be read: {e}") from e
    return Table((records.pop(_root_of(records)), *records))


def _root_of(records: list[Record]) -> int:
    return next(i for i, r in enumerate(records) if r.path == b".")


def _walk(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    device = os.lstat(root).st_dev
    yield b".", root
    stack = [(b"", root)]
    while stack:
        prefix, directory = stack.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                path = prefix + entry.name
                yield path, entry.path
                if not entry.is_dir(follow_symlinks=False):
                    continue
                if entry.stat(follow_symlinks=False).st_dev == device:
                    stack.append((path + b"/", entry.path))


def _record(path: bytes, full: bytes, first: dict[tuple[int, int], bytes]) -> Record:
    info = os.lstat(full)
    kind = _KINDS[stat.S_IFMT(info.st_mode)]
    if info.st_nlink > 1 and kind != "d":
        target = first.setdefault((info.st_dev, info.st_ino), path)
        if target != path:
            return Record(path, "h", content=target)
    size, content = 0, b""
    if kind == "f":
        size, content = info.st_size, file_digest(os.fsdecode(full))
    elif kind == "l":
        content = os.readlink(full)  # noqa: PTH115 - bytes
    elif kind in "cb":
        content = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}".encode()
    xattrs = tuple(
        (os.fsencode(name), os.getxattr(full, name, follow_symlinks=False))
        for name in sorted(os.listxattr(full, follow_symlinks=False))
    )
    mode = stat.S_IMODE(info.st_mode)
    return Record(
        path, kind, mode, info.st_uid, info.st_gid, info.st_mtime_ns, size, content, xattrs
    )


def parse_table(data: bytes) -> Table:
    """Read a table; VerifyError when it is not exactly what a tree's table can be.

    Every path lies below the root, in a directory that the table has; none is there twice.
    """
    fields = data.split(b"\0")
    if fields.pop() != b"" or len(fields) % _FIELDS or not fields:
        raise VerifyError("the table of the tree is not made of whole records")
    records: list[Record] = []
    kinds: dict[bytes, str] = {}
    for start in range(0, len(fields), _FIELDS):
        record = _parsed(fields[start : start + _FIELDS])
        _place(record, records[-1].path if records else None, kinds)
        kinds[record.path] = record.kind
        records.append(record)
    table = Table(tuple(records))
    if table.encoded() != data:
        raise VerifyError("the table of the tree is not in its canonical form")
    return table


def _place(record: Record, before: bytes | None, kinds: dict[bytes, str]) -> None:
    """Refuse a record that leads elsewhere or is out of order."""
    path = record.path
    if before is None:
        if path != b"." or record.kind != "d":
            raise VerifyError("the table of the tree does not begin with its root")
        return
    parts = path.split(b"/")
    if any(p in (b"", b".", b"..") or len(p) > _NAME_MAX for p in parts) or len(path) > _PATH_MAX:
        raise VerifyError(f"the table has the path {path!r}, which leads elsewhere")
    if before != b"." and path <= before:
        raise VerifyError(f"the table has the path {path!r} out of order")
    parent = b"/".join(parts[:-1]) or b"."
    if kinds.get(parent) != "d":
        raise VerifyError(f"the table has the path {path!r}, which is in no directory")
    if record.kind == "h" and kinds.get(record.content, "d") in "dh":
        raise VerifyError(f"the hard link {path!r} leads to no file before it")


def _parsed(fields: list[bytes]) -> Record:
    path, kind, mode, uid, gid, mtime, size, content, xattrs = fields
    if kind == b"h":
        if mode or uid or gid or mtime or size or xattrs:
            raise VerifyError(f"the hard link {path!r} has more than a target")
        return Record(path, "h", content=content)
    numbers = (uid, gid, mtime, size)
    if not _OCTAL.fullmatch(mode) or not all(_NUMBER.fullmatch(n) for n in numbers):
        raise VerifyError(f"the numbers of {path!r} in the table are none")
    owner, group, time, length = (int(n) for n in numbers)
    if not (0 <= owner <= _LARGEST_ID and 0 <= group <= _LARGEST_ID):
        raise VerifyError(f"{path!r} has an owner that there cannot be")
    if not 0 <= length <= _LARGEST_FILE or abs(time) >= 1 << 63:
        raise VerifyError(f"{path!r} has a size or a time that there cannot be")
    right = {
        b"f": bool(_SHA256.fullmatch(content)),
        b"d": not content and not length,
        b"l": 0 < len(content) <= _PATH_MAX and not length,
        b"c": bool(_DEVICE.fullmatch(content)) and not length,
        b"b": bool(_DEVICE.fullmatch(content)) and not length,
        b"p": not content and not length,
        b"s": not content and not length,
    }.get(kind, False)
    if not right:
        raise VerifyError(f"the table has {path!r} as what it cannot be")
    if not _XATTRS.fullmatch(xattrs):
        raise VerifyError(f"the extended attributes of {path!r} are none")
    pairs = [pair.split(b"=") for pair in xattrs.split(b",") if pair]
    found = tuple((bytes.fromhex(n.decode()), bytes.fromhex(v.decode())) for n, v in pairs)
    return Record(path, kind.decode(), int(mode, 8), owner, group, time, length, content, found)
