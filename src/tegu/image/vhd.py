"""VHD footers: checked, and made the same for the same disk.

qemu-img stamps each VHD with the time and a random UUID. Offsets are those of Microsoft's "Virtual
Hard Disk Image Format Specification" 1.0; all numbers are big-endian.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tegu.errors import BuildError

__all__ = ["Footer", "pin_footer", "read_footer"]

_SIZE = 512
_TIME, _ORIGINAL, _CURRENT, _TYPE, _CHECKSUM, _UUID = 24, 40, 48, 60, 64, 68
_EPOCH = 946_684_800  # 2000-01-01 00:00:00 UTC
FIXED, DYNAMIC = 2, 3


@dataclass(frozen=True, slots=True)
class Footer:
    """What a footer says: `kind` is 2 (fixed) or 3 (dynamic), `size` the virtual size in bytes."""

    kind: int
    size: int
    uuid: UUID


def _sum(footer: bytes) -> int:
    blank = footer[:_CHECKSUM] + bytes(4) + footer[_CHECKSUM + 4 :]
    return ~sum(blank) & 0xFFFF_FFFF


def _parse(footer: bytes, what: str) -> Footer:
    if len(footer) != _SIZE or footer[:8] != b"conectix":
        raise BuildError(f"{what} is not a VHD: it has no footer")
    if struct.unpack_from(">I", footer, _CHECKSUM)[0] != _sum(footer):
        raise BuildError(f"{what} is damaged: its footer's checksum is wrong")
    original, size = struct.unpack_from(">QQ", footer, _ORIGINAL)
    (kind,) = struct.unpack_from(">I", footer, _TYPE)
    if kind not in (FIXED, DYNAMIC):
        raise BuildError(f"{what} is a VHD of a kind that is not known here ({kind})")
    if original != size:
        raise BuildError(f"{what} is a VHD that was resized ({original} to {size} bytes)")
    return Footer(kind, size, UUID(bytes=footer[_UUID : _UUID + 16]))


def read_footer(path: Path) -> Footer:
    """Read and check a VHD's footer, and a dynamic one's copy at its start; raises BuildError."""
    with path.open("rb") as f:
        length = os.fstat(f.fileno()).st_size
        f.seek(max(length - _SIZE, 0))
        raw = f.read(_SIZE)
        footer = _parse(raw, path.name)
        if footer.kind == FIXED and length != footer.size + _SIZE:
            raise BuildError(
                f"{path.name} is cut short: {length} bytes for a disk of {footer.size}"
            )
        f.seek(0)
        if footer.kind == DYNAMIC and f.read(_SIZE) != raw:
            raise BuildError(f"{path.name} is damaged: the two copies of its footer differ")
    return footer


def pin_footer(path: Path, uuid: UUID, timestamp: int) -> Footer:
    """Give a VHD this UUID and date (seconds since 1970) in place of those that it has."""
    before = read_footer(path)
    with path.open("r+b") as f:
        places = [os.fstat(f.fileno()).st_size - _SIZE]
        if before.kind == DYNAMIC:
            places.append(0)
        for place in places:
            f.seek(place)
            footer = bytearray(f.read(_SIZE))
            struct.pack_into(">I", footer, _TIME, max(timestamp - _EPOCH, 0))
            footer[_UUID : _UUID + 16] = uuid.bytes
            struct.pack_into(">I", footer, _CHECKSUM, _sum(bytes(footer)))
            f.seek(place)
            f.write(footer)
    return read_footer(path)
