"""GUID partition tables: written whole, always the same, and moved when a disk grows.

The layout is that of the UEFI specification 2.10, chapter 5: a protective MBR, the primary header
and 128 entries at the start of the disk, the same again at its end. Types and attributes are those
of the UAPI Discoverable Partitions Specification, which lets systemd find and grow the root without
being told. Sectors are 512 bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO
from uuid import UUID

from tegu.errors import BuildError

__all__ = [
    "BIOS_BOOT",
    "ESP",
    "GROW_FILE_SYSTEM",
    "MIB",
    "READ_ONLY",
    "SECTOR",
    "Partition",
    "Table",
    "place",
    "read_table",
    "regrow",
    "write_table",
]

SECTOR = 512
MIB = 1 << 20
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
GROW_FILE_SYSTEM = 1 << 59
READ_ONLY = 1 << 60

_ENTRIES = 128
_ENTRY = struct.Struct("<16s16sQQQ72s")
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY_SECTORS = _ENTRIES * _ENTRY.size // SECTOR
_FIRST_USABLE = 2 + _ENTRY_SECTORS


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition; `start` and `size` in bytes, `start` 0 until it is placed."""

    label: str
    type: UUID
    uuid: UUID
    size: int
    attributes: int = 0
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Table:
    """A disk of `size` bytes with its partitions, numbered from 1 in order."""

    uuid: UUID
    size: int
    partitions: tuple[Partition, ...]


def place(partitions: Sequence[Partition], size: int) -> tuple[Partition, ...]:
    """Place partitions one after the other, from and to whole MiB.

    A last partition of size 0 takes all that is left. Raises BuildError when they do not fit a disk
    of `size` bytes; its first and last MiB belong to the tables.
    """
    placed, at, end = [], MIB, size - MIB
    for partition in partitions:
        length = -(-partition.size // MIB) * MIB
        if length == 0 and partition is partitions[-1]:
            length = (end - at) // MIB * MIB
        if length <= 0 or at + length > end:
            needed = sum(-(-p.size // MIB) * MIB or MIB for p in partitions) + 2 * MIB
            raise BuildError(
                f"the partitions need {needed // MIB} MiB and the disk has {size // MIB} MiB",
                hint="raise image.size",
            )
        placed.append(replace(partition, start=at, size=length))
        at += length
    return tuple(placed)


def _header(table: Table, entries: bytes, *, here: int, other: int, entries_at: int) -> bytes:
    last = table.size // SECTOR - 1

    def pack(crc: int) -> bytes:
        return _HEADER.pack(
            b"EFI PART",
            0x10000,
            _HEADER.size,
            crc,
            0,
            here,
            other,
            _FIRST_USABLE,
            last - 1 - _ENTRY_SECTORS,
            table.uuid.bytes_le,
            entries_at,
            _ENTRIES,
            _ENTRY.size,
            zlib.crc32(entries),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")


def _protective_mbr(size: int, code: bytes) -> bytes:
    sectors = min(size // SECTOR - 1, 0xFFFF_FFFF)
    record = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, sectors)
    return code.ljust(446, b"\0") + record.ljust(64, b"\0") + b"\x55\xaa"


def write_table(f: IO[bytes], table: Table, *, code: bytes = b"") -> None:
    """Write both copies of the table to the disk `f`, and `code` (at most 440 bytes) before it."""
    if table.size % SECTOR or table.size < 2 * MIB:
        raise BuildError(f"a disk cannot be {table.size} bytes large")
    if len(code) > 440:
        raise BuildError("the boot code is larger than the first sector's 440 bytes")
    entries = b"".join(
        _ENTRY.pack(
            p.type.bytes_le,
            p.uuid.bytes_le,
            p.start // SECTOR,
            p.end // SECTOR - 1,
            p.attributes,
            p.label.encode("utf-16-le")[:72],
        )
        for p in table.partitions
    ).ljust(_ENTRIES * _ENTRY.size, b"\0")
    last = table.size // SECTOR - 1
    backup = last - _ENTRY_SECTORS
    f.seek(0)
    f.write(_protective_mbr(table.size, code))
    f.write(_header(table, entries, here=1, other=last, entries_at=2))
    f.write(entries)
    f.seek(backup * SECTOR)
    f.write(entries)
    f.write(_header(table, entries, here=last, other=1, entries_at=backup))


def read_table(f: IO[bytes]) -> Table:
    """Read the primary table of a disk; raises BuildError when there is none or it is damaged."""
    f.seek(SECTOR)
    raw = f.read(SECTOR)
    if len(raw) < SECTOR or raw[:8] != b"EFI PART":
        raise BuildError("the disk has no GUID partition table")
    fields = _HEADER.unpack_from(raw)
    header_size, crc, backup, count, size = (fields[i] for i in (2, 3, 6, 11, 12))
    if not _HEADER.size <= header_size <= SECTOR or size != _ENTRY.size or not 0 < count <= 1024:
        raise BuildError("the disk's partition table has a form that is not known here")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:header_size]) != crc:
        raise BuildError("the disk's partition table is damaged: its header's checksum is wrong")
    f.seek(fields[10] * SECTOR)
    entries = f.read(count * size)
    if len(entries) < count * size or zlib.crc32(entries) != fields[13]:
        raise BuildError("the disk's partition table is damaged: its entries' checksum is wrong")
    partitions = []
    for offset in range(0, count * size, size):
        kind, uuid, first, last, attributes, name = _ENTRY.unpack_from(entries, offset)
        if kind == bytes(16):
            continue
        label = name.decode("utf-16-le", errors="replace").partition("\0")[0]
        length = (last - first + 1) * SECTOR
        partitions.append(
            Partition(
                label, UUID(bytes_le=kind), UUID(bytes_le=uuid), length, attributes, first * SECTOR
            )
        )
    return Table(UUID(bytes_le=fields[9]), (backup + 1) * SECTOR, tuple(partitions))


def regrow(f: IO[bytes], size: int) -> Table:
    """Make the disk `f` `size` bytes large and move the table's second copy to its new end.

    Partitions stay as they are: the machine grows its root at first boot. Raises BuildError when
    `size` is smaller than the disk.
    """
    table = read_table(f)
    if size < table.size:
        raise BuildError(f"a disk of {table.size} bytes cannot become {size} bytes")
    f.seek(0)
    code = f.read(440)
    old = table.size - (1 + _ENTRY_SECTORS) * SECTOR
    f.seek(old)
    f.write(bytes((1 + _ENTRY_SECTORS) * SECTOR))
    os.ftruncate(f.fileno(), size)
    grown = replace(table, size=size)
    write_table(f, grown, code=code)
    return grown
