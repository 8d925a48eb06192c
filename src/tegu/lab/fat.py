"""A small FAT12 volume made in memory: the same files always give the same bytes.

The format is that of Microsoft's "FAT: General Overview of On-Disk Format" (2000, version 1.03):
one FAT copy would do, two are customary; long names as in its chapter on long directory entries.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

__all__ = ["CAPACITY", "fat_volume"]

_SECTOR: Final = 512
_CLUSTER: Final = 2048
_ROOT_ENTRIES: Final = 64
_ENTRY: Final = struct.Struct("<11sBBBHHHHHHHI")
_ARCHIVE, _VOLUME, _LONG = 0x20, 0x08, 0x0F
_DATE: Final = (1 << 5) | 1  # 1980-01-01, the format's first day
_LAST: Final = 0xFFF

CAPACITY: Final = 4000 * _CLUSTER
"""The bytes that the files of a volume may take (FAT12 ends at 4084 clusters)."""


def fat_volume(files: Mapping[str, bytes], *, label: str, serial: int) -> bytes:
    """Return a FAT12 volume with `files` in its root directory.

    `label` has at most 11 upper-case characters; `serial` is the 32-bit volume id. Raises
    ValueError when the files or their names do not fit.
    """
    needed = sum(-(-len(data) // _CLUSTER) for data in files.values())
    if needed * _CLUSTER > CAPACITY:
        raise ValueError(f"the files take more than {CAPACITY} bytes")
    clusters = max(needed, 64)
    fat: list[int] = [0xFF8, _LAST]
    area = bytearray()
    root = bytearray(_entry(label.encode("ascii").ljust(11), _VOLUME, 0, 0))
    for number, (name, data) in enumerate(sorted(files.items()), start=1):
        used = -(-len(data) // _CLUSTER)
        first = len(fat) if used else 0
        fat += [*range(first + 1, first + used), _LAST] if used else []
        area += data.ljust(used * _CLUSTER, b"\0")
        root += _named(name, number, first, len(data))
    if len(root) > _ROOT_ENTRIES * _ENTRY.size:
        raise ValueError("too many files, or their names are too long")
    fat_bytes = _pack_fat(fat, clusters + 2)
    return b"".join(
        (
            _boot_sector(clusters, len(fat_bytes) // _SECTOR, label, serial),
            fat_bytes * 2,
            root.ljust(_ROOT_ENTRIES * _ENTRY.size, b"\0"),
            area.ljust(clusters * _CLUSTER, b"\0"),
        )
    )


def _boot_sector(clusters: int, fat_sectors: int, label: str, serial: int) -> bytes:
    root_sectors = _ROOT_ENTRIES * _ENTRY.size // _SECTOR
    total = 1 + 2 * fat_sectors + root_sectors + clusters * (_CLUSTER // _SECTOR)
    head = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x3c\x90",
        b"TEGU    ",
        _SECTOR,
        _CLUSTER // _SECTOR,
        1,
        2,
        _ROOT_ENTRIES,
        total,
        0xF8,
        fat_sectors,
        32,
        64,
        0,
        0,
    )
    tail = struct.pack(
        "<BBBI11s8s", 0x80, 0, 0x29, serial, label.encode("ascii").ljust(11), b"FAT12   "
    )
    return (head + tail).ljust(510, b"\0") + b"\x55\xaa"


def _pack_fat(entries: list[int], count: int) -> bytes:
    """Pack 12-bit entries, two to three bytes, up to whole sectors for `count` clusters."""
    padded = entries + [0] * (count + count % 2 - len(entries))
    out = bytearray()
    for low, high in zip(padded[::2], padded[1::2], strict=True):
        out += bytes((low & 0xFF, (low >> 8) | ((high & 0xF) << 4), high >> 4))
    return bytes(out.ljust(-(-len(out) // _SECTOR) * _SECTOR, b"\0"))


def _entry(name: bytes, attributes: int, first: int, size: int) -> bytes:
    return _ENTRY.pack(name, attributes, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, first, size)


def _named(name: str, number: int, first: int, size: int) -> bytes:
    """Return the long-name entries (last part first) and the short entry of one file."""
    if not name or len(name) > 255 or any(c in '"*/:<>?\\|' or c < " " for c in name):
        raise ValueError(f"not a file name: {name!r}")
    short = f"TEGU~{number}".encode("ascii").ljust(11)
    checksum = 0
    for byte in short:
        checksum = ((checksum << 7 | checksum >> 1) + byte) & 0xFF
    units = name.encode("utf-16-le")
    parts = [units[i : i + 26] for i in range(0, len(units), 26)]
    out = bytearray()
    for index in range(len(parts), 0, -1):
        part = parts[index - 1]
        if len(part) < 26:
            part = (part + b"\0\0").ljust(26, b"\xff")
        order = index | (0x40 if index == len(parts) else 0)
        out += bytes((order,)) + part[:10] + bytes((_LONG, 0, checksum)) + part[10:22]
        out += b"\0\0" + part[22:]
    return bytes(out) + _entry(short, _ARCHIVE, first, size)
