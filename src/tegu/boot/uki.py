"""Unified kernel images: kernel, initrd and command line in one UEFI program.

A UKI is systemd's stub (systemd-stub(7)) with PE sections appended: `.osrel`, `.cmdline`, `.uname`,
`.initrd`, `.linux`. Appending them needs a dozen header fields, so it is done here with `struct`
and not with pefile: the host half does it inside each machine, where one more Python package would
weigh more than this file. Field offsets are those of the Microsoft PE format specification; which
sections the stub reads, and how it wants them aligned, those of the UAPI UKI specification.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tegu.errors import BuildError

__all__ = ["Section", "build_uki", "read_sections", "section_data"]

_CODE = 0x0000_0020
_DATA = 0x0000_0040
_READ = 0x4000_0000
_NX_COMPAT = 0x0100
_HEADER = struct.Struct("<8sIIIIIIHHI")


@dataclass(frozen=True, slots=True)
class Section:
    """One section, in bytes: `size` is what counts, `stored` what the file has of it."""

    name: str
    size: int
    address: int
    stored: int
    offset: int


@dataclass
class _Image:
    """The fields of a PE32+ file that adding sections touches."""

    data: bytearray
    optional: int
    table: int
    sections: list[Section]
    file_alignment: int
    section_alignment: int
    headers: int

    @classmethod
    def read(cls, raw: bytes, what: str) -> _Image:
        data = bytearray(raw)
        try:
            (pe,) = struct.unpack_from("<I", data, 0x3C)
            if data[:2] != b"MZ" or data[pe : pe + 4] != b"PE\0\0":
                raise BuildError(f"{what} is not a PE program")
            (count,) = struct.unpack_from("<H", data, pe + 6)
            (optional_size,) = struct.unpack_from("<H", data, pe + 20)
            optional = pe + 24
            (magic,) = struct.unpack_from("<H", data, optional)
            if magic != 0x20B:
                raise BuildError(f"{what} is not a 64-bit PE program")
            alignments = struct.unpack_from("<II", data, optional + 32)
            (headers,) = struct.unpack_from("<I", data, optional + 60)
            table = optional + optional_size
            sections = []
            for i in range(count):
                name, size, address, stored, offset, *_ = _HEADER.unpack_from(
                    data, table + i * _HEADER.size
                )
                text = name.rstrip(b"\0").decode(errors="replace")
                sections.append(Section(text, size, address, stored, offset))
        except struct.error as e:
            raise BuildError(f"{what} is cut short: {e}") from e
        if not sections or any(s.offset + s.stored > len(data) for s in sections):
            raise BuildError(f"{what} is cut short: its sections are not all there")
        return cls(data, optional, table, sections, alignments[1], alignments[0], headers)

    @property
    def nx(self) -> bool:
        (flags,) = struct.unpack_from("<H", self.data, self.optional + 70)
        return bool(flags & _NX_COMPAT)

    def clear_nx(self) -> None:
        (flags,) = struct.unpack_from("<H", self.data, self.optional + 70)
        struct.pack_into("<H", self.data, self.optional + 70, flags & ~_NX_COMPAT)

    def add(self, name: str, content: bytes, flags: int) -> None:
        place = self.table + len(self.sections) * _HEADER.size
        if place + _HEADER.size > min(self.headers, *(s.offset for s in self.sections)):
            raise BuildError(f"the UEFI stub has no room in its header for the section {name}")
        last = max(self.sections, key=lambda s: s.address)
        address = _up(last.address + last.size, self.section_alignment)
        self.data += bytes(-len(self.data) % self.file_alignment)
        offset, stored = len(self.data), _up(len(content), self.file_alignment)
        _HEADER.pack_into(
            self.data,
            place,
            name.encode(),
            len(content),
            address,
            stored,
            offset,
            0,
            0,
            0,
            0,
            flags,
        )
        self.data += content
        self.data += bytes(stored - len(content))
        self.sections.append(Section(name, len(content), address, stored, offset))
        pe = self.optional - 24
        struct.pack_into("<H", self.data, pe + 6, len(self.sections))
        (initialised,) = struct.unpack_from("<I", self.data, self.optional + 8)
        if flags & _DATA:
            struct.pack_into("<I", self.data, self.optional + 8, initialised + stored)
        size = _up(address + len(content), self.section_alignment)
        struct.pack_into("<I", self.data, self.optional + 56, size)
        struct.pack_into(
            "<I", self.data, self.optional + 64, 0
        )  # the checksum; firmware ignores it


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def build_uki(
    stub: bytes,
    kernel: bytes,
    *,
    cmdline: str,
    os_release: str,
    uname: str,
    initrd: bytes | None,
) -> bytes:
    """Return a UKI; the same input gives the same bytes.

    `stub` is systemd's linux*.efi.stub, `kernel` a kernel with EFI stub (bzImage or Image), `uname`
    its version, `os_release` the text of os-release(5). Raises BuildError when one of the programs
    is none, the stub is signed, or it already is a UKI.
    """
    image = _Image.read(stub, "the UEFI stub")
    inner = _Image.read(kernel, f"the kernel {uname}")
    if any(s.name == ".linux" for s in image.sections):
        raise BuildError("the UEFI stub already holds a kernel")
    # IMAGE_DIRECTORY_ENTRY_SECURITY is the fifth data directory of PE32+.
    if struct.unpack_from("<I", image.data, image.optional + 112 + 4 * 8)[0]:
        raise BuildError("the UEFI stub is signed; adding sections would break its signature")
    if not inner.nx:
        # Firmware that enforces it wants stub and kernel to agree.
        image.clear_nx()
    texts: Sequence[tuple[str, str]] = (
        (".osrel", os_release),
        (".cmdline", cmdline),
        (".uname", uname),
    )
    for name, text in texts:
        image.add(name, text.encode(), _DATA | _READ)
    if initrd is not None:
        image.add(".initrd", initrd, _DATA | _READ)
    image.add(".linux", kernel, _CODE | _READ)
    return bytes(image.data)


def read_sections(uki: bytes) -> dict[str, Section]:
    """Return the sections of a UKI (or any PE32+ program) by name; raises BuildError."""
    return {s.name: s for s in _Image.read(uki, "the unified kernel image").sections}


def section_data(uki: bytes, name: str) -> bytes | None:
    """Return what the section `name` holds, or None when there is no such section."""
    section = read_sections(uki).get(name)
    if section is None:
        return None
    return uki[section.offset : section.offset + section.size]
