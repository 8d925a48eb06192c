"""Reading a binary package: deb(5), an ar archive of a control tar and a data tar.

A package is input from outside: every name, link and size in it is checked before it is handed
out, so that unpacking can neither leave its directory nor fill the disk beyond what was declared.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from tegu.errors import UnsupportedError, VerifyError
from tegu.packages.deb_check import Checker
from tegu.packages.deb_streams import OPENERS, Content, Forward, Memory, Slice

__all__ = ["DebArchive", "Limits", "open_deb"]

_AR_MAGIC = b"!<arch>\n"
_HEADER = 60
_IN_MEMORY = 96 << 20
_PART = 4 << 20
_KEY = re.compile(r"[!-9;-~]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a package may hold at most: bytes when decompressed, and members."""

    control_bytes: int = 64 << 20
    data_bytes: int = 16 << 30
    members: int = 2_000_000


XzReader = Callable[[bytes], memoryview | None]
"""Returns what an .xz file holds, valid until the next call; None to have it read the usual way."""


def open_deb(path: Path, limits: Limits = Limits(), *, xz: XzReader | None = None) -> DebArchive:
    """Open the package file at `path`; use it as a context manager.

    `xz` is another way to decompress the data tar. Raises VerifyError when it is not a well-formed
    package.
    """
    return DebArchive(path, limits, xz)


class DebArchive:
    """An open .deb. `fields` are those of its control file, `control` its other control members.

    `control` maps names (`preinst`, `conffiles`, `triggers`, `md5sums` ...) to their text; bytes
    that are not UTF-8 become lone surrogates (PEP 383). `fields` keeps the order of the file,
    continuation lines joined by newlines.
    """

    def __init__(self, path: Path, limits: Limits = Limits(), xz: XzReader | None = None) -> None:
        self.path = path
        self._limits = limits
        self._xz = xz
        self._stack = ExitStack()
        try:
            self._file = self._stack.enter_context(path.open("rb"))
            self._members = _ar_members(self._file, path)
            self.fields, self.control = self._read_control()
        except OSError as e:
            self.close()
            raise VerifyError(f"{path}: {e.strerror or e}") from e
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; further reading fails."""
        self._stack.close()

    def data(self) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        """Yield the members of the data tar in their order, each with its content if it is a file.

        Content must be read before the next member is asked for. Names are relative without a
        leading `./` (the root itself is `.`), links checked: see `Checker`.
        """
        check = Checker(self.path, self._limits.members)
        with self._tar("data.tar", self._limits.data_bytes, self._xz) as tar:
            for info in _members(tar, self.path):
                check(info)
                yield info, self._content(tar, info) if info.isreg() else None

    def _content(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
        if isinstance(tar.fileobj, Memory):  # all of it is there: no layers in between
            part = tar.fileobj.part(info.offset_data, info.size)
            if len(part) != info.size:
                raise VerifyError(f"{self.path}: {info.name} is cut short")
            return cast("IO[bytes]", Memory(part))
        content = tar.extractfile(info)
        assert content is not None  # it is a regular file
        return io.BufferedReader(Content(content, f"{self.path}: {info.name}"), 1 << 18)

    def _read_control(self) -> tuple[dict[str, str], dict[str, str]]:
        files: dict[str, str] = {}
        with self._tar("control.tar", self._limits.control_bytes) as tar:
            for info in _members(tar, self.path):
                name = info.name.removeprefix("./").strip("/")
                if name in ("", ".") and info.isdir():
                    continue
                if "/" in name or name in ("", ".", "..") or not info.isreg():
                    raise VerifyError(f"{self.path}: odd control member {info.name!r}")
                content = tar.extractfile(info)
                assert content is not None
                files[name] = content.read().decode("utf-8", "surrogateescape")
        try:
            fields = parse_fields(files.pop("control"))
        except KeyError as e:
            raise VerifyError(f"{self.path}: it has no control file") from e
        for key in ("Package", "Version", "Architecture"):
            if not fields.get(key):
                raise VerifyError(f"{self.path}: its control file has no {key}")
        return fields, files

    def _tar(self, stem: str, limit: int, xz: XzReader | None = None) -> _Tar:
        for name, (offset, size) in self._members.items():
            if name == stem or name.startswith(f"{stem}."):
                return _Tar(self.path, name, Slice(self._file, offset, size), limit, xz)
        raise VerifyError(f"{self.path}: it has no {stem}")


class _Tar:
    """Opens a compressed tar and turns every way in which it can be broken into VerifyError."""

    def __init__(self, path: Path, name: str, raw: Slice, limit: int, xz: XzReader | None) -> None:
        self.path = path
        self.name = name
        self.raw = raw
        self.limit = limit
        self.xz = xz
        self.stack = ExitStack()

    def __enter__(self) -> tarfile.TarFile:
        suffix = Path(self.name).suffix
        opener = OPENERS.get(suffix if suffix != ".tar" else "")
        if opener is None:
            raise UnsupportedError(f"{self.path}: compression of {self.name} is not known")
        stream = self._in_memory(opener) or Forward(opener(self.raw), self.path, self.limit)
        try:
            return self.stack.enter_context(
                tarfile.open(
                    fileobj=cast("IO[bytes]", stream), mode="r:", errorlevel=2, encoding="utf-8"
                )
            )
        except tarfile.TarError as e:
            raise VerifyError(f"{self.path}: {self.name} is damaged: {e}") from e

    def _in_memory(self, opener: Callable[[Slice], IO[bytes]]) -> Memory | None:
        """Return the whole tar when it is small, as nearly all are; None for a large one."""
        if self.xz is not None and self.name.endswith(".xz"):
            whole = self.xz(self.raw.read())
            self.raw.rewind()
            if whole is not None and len(whole) <= self.limit:
                return Memory(whole)
        stream = Forward(opener(self.raw), self.path, min(self.limit, _IN_MEMORY))
        parts = []
        try:
            while part := stream.read(_PART):
                parts.append(part)
        except VerifyError:
            # Too large, or damaged: read in a stream, which tells which of the two.
            self.raw.rewind()
            return None
        return Memory(memoryview(b"".join(parts)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()
        if isinstance(error, tarfile.TarError | UnicodeError):
            raise VerifyError(f"{self.path}: {self.name} is damaged: {error}") from error


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield members without keeping them; sparse members and odd headers are refused."""
    kept: list[tarfile.TarInfo] = vars(tar)["members"]  # tarfile would keep every member
    while True:
        try:
            info = tar.next()
        except (UnicodeError, ValueError, OverflowError, IndexError) as e:
            raise VerifyError(f"{path}: a tar header is damaged: {e}") from e
        if info is None:
            return
        kept.clear()
        if info.sparse is not None or info.size < 0:
            raise VerifyError(f"{path}: odd tar member {info.name!r}")
        yield info


def _ar_members(file: IO[bytes], path: Path) -> dict[str, tuple[int, int]]:
    """Return offset and size of each member of the ar archive (deb(5))."""
    size = os.fstat(file.fileno()).st_size
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise VerifyError(f"{path}: not a Debian package")
    members: dict[str, tuple[int, int]] = {}
    offset = len(_AR_MAGIC)
    while offset < size:
        file.seek(offset)
        header = file.read(_HEADER)
        digits = header[48:58].rstrip(b" ")
        if len(header) < _HEADER or header[58:60] != b"`\n" or not digits.isdigit():
            raise VerifyError(f"{path}: a member of the archive is damaged (at byte {offset})")
        length = int(digits)
        if offset + _HEADER + length > size:
            raise VerifyError(f"{path}: cut short")
        name = header[:16].rstrip(b" ").rstrip(b"/").decode("ascii", "replace")
        if name in members:
            raise VerifyError(f"{path}: {name} is there twice")
        members[name] = (offset + _HEADER, length)
        offset += _HEADER + length + (length & 1)
    if next(iter(members), "") != "debian-binary":
        raise VerifyError(f"{path}: not a Debian package (no debian-binary)")
    where, length = members["debian-binary"]
    file.seek(where)
    if not file.read(min(length, 16)).startswith(b"2."):
        raise VerifyError(f"{path}: its package format is not 2.x")
    return members


def parse_fields(text: str) -> dict[str, str]:
    """Parse one stanza of a control file (deb822(5)); raises VerifyError when it is none."""
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip():
            if fields:
                break
            continue
        if line[0] in " \t":
            if not key:
                raise VerifyError(f"control file: continuation without a field: {line[:60]!r}")
            fields[key] += f"\n{line}"
            continue
        if line[0] == "#":
            continue
        key, colon, value = line.partition(":")
        if not colon or not _KEY.fullmatch(key):
            raise VerifyError(f"control file: malformed line {line[:60]!r}")
        fields[key] = value.strip()
    return fields
