"""Write into the inodes of a fresh XFS image what mkfs.xfs took from the clock or left out.

mkfs.xfs stamps all files with the present and gives each inode, used or not, a random generation.
Here they get the tree's modification times, one timestamp for all else, generation 1, and the mode
bits that a protofile cannot express. Offsets are those of the kernel's fs/xfs/libxfs/xfs_format.h;
numbers on disk are big-endian, but checksums little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from tegu.errors import BuildError
from tegu.image.crc32c import Delta
from tegu.image.xfs_proto import Wanted

__all__ = ["Geometry", "settle_inodes"]

_INODE = 512
_CHUNK = 64
_MODE, _LINKS, _TIMES, _GENERATION, _CRC, _FLAGS2, _CREATED = 2, 16, 32, 92, 100, 120, 144
_BIGTIME = 1 << 3
_EPOCH = 1 << 31


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where things are: sizes in bytes; `*_log` are powers of two, `root` is an inode."""

    block: int
    sector: int
    group_blocks: int
    groups: int
    inodes_per_block_log: int
    group_blocks_log: int
    root: int

    @classmethod
    def read(cls, f: IO[bytes]) -> Geometry:
        f.seek(0)
        sb = f.read(512)
        if len(sb) < 512 or sb[:4] != b"XFSB":
            raise BuildError("mkfs.xfs left no XFS file system")
        (block,) = struct.unpack_from(">I", sb, 4)
        (root,) = struct.unpack_from(">Q", sb, 56)
        group_blocks, groups = struct.unpack_from(">II", sb, 84)
        sector, inode, per_block = struct.unpack_from(">HHH", sb, 102)
        if inode != _INODE or block != per_block * inode:
            raise BuildError("mkfs.xfs made inodes of another size than it was asked for")
        return cls(block, sector, group_blocks, groups, sb[123], sb[124], root)

    def offset(self, group: int, inode: int) -> int:
        """Return where an inode of a group lies."""
        block = inode >> self.inodes_per_block_log
        inside = inode & ((1 << self.inodes_per_block_log) - 1)
        return (group * self.group_blocks + block) * self.block + inside * _INODE

    def number(self, group: int, inode: int) -> int:
        """Return an inode's number in the file system."""
        return group << (self.group_blocks_log + self.inodes_per_block_log) | inode


def _chunks(f: IO[bytes], geometry: Geometry, group: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first inode, mask of holes, mask of free inodes) of the chunks of a group."""
    f.seek(group * geometry.group_blocks * geometry.block + 2 * geometry.sector)
    agi = f.read(geometry.sector)
    if agi[:4] != b"XAGI":
        raise BuildError("mkfs.xfs left a group without inode header")
    stack = [struct.unpack_from(">I", agi, 20)[0]]
    most = (geometry.block - 56) // 8
    while stack:
        f.seek((group * geometry.group_blocks + stack.pop()) * geometry.block)
        block = f.read(geometry.block)
        level, count = struct.unpack_from(">HH", block, 4)
        if block[:4] != b"IAB3" or count > (geometry.block - 56) // (16 if level == 0 else 8):
            raise BuildError("mkfs.xfs left an inode index that is not known here")
        if level:
            stack += struct.unpack_from(f">{count}I", block, 56 + most * 4)
            continue
        for i in range(count):
            start, holes, _, _, free = struct.unpack_from(">IHBBQ", block, 56 + i * 16)
            yield start, holes, free


def settle_inodes(f: IO[bytes], wanted: Mapping[int, Wanted], timestamp: int) -> int:
    """Settle all inodes; returns how many are in use.

    `wanted` says by inode number what the tree has, the root as 0; inodes that are not in it (the
    realtime ones) get `timestamp` and keep their mode. Raises BuildError when the file system is
    not what was asked for.
    """
    geometry = Geometry.read(f)
    spots = [2, 3, *range(_TIMES, _TIMES + 24), *range(_GENERATION, _GENERATION + 4)]
    delta = Delta(_INODE, [*spots, *range(_CREATED, _CREATED + 8)])
    used = 0
    for group in range(geometry.groups):
        for start, holes, free in list(_chunks(f, geometry, group)):
            for i in range(_CHUNK):
                if holes >> (i // 4) & 1:
                    continue
                place = geometry.offset(group, start + i)
                number = geometry.number(group, start + i)
                in_use = not free >> i & 1
                used += in_use
                f.seek(place)
                raw = f.read(_INODE)
                known = wanted.get(0 if number == geometry.root else number)
                new = _settled(raw, delta, known, timestamp, in_use=in_use)
                if new != raw:
                    f.seek(place)
                    f.write(new)
    return used


def _settled(
    raw: bytes, delta: Delta, known: Wanted | None, timestamp: int, *, in_use: bool
) -> bytes:
    if raw[:2] != b"IN" or raw[4] != 3:
        raise BuildError("mkfs.xfs left an inode that is none")
    changes = [(_GENERATION, bytes(4) if not in_use else struct.pack(">I", 1))]
    if in_use:
        if not struct.unpack_from(">Q", raw, _FLAGS2)[0] & _BIGTIME:
            raise BuildError("mkfs.xfs made inodes without bigtime")
        mtime = timestamp if known is None else min(known.mtime, timestamp)
        now, then = _time(timestamp), _time(mtime)
        changes += [(_TIMES, now + then + now), (_CREATED, now)]
        if known is not None:
            (mode,) = struct.unpack_from(">H", raw, _MODE)
            changes.append((_MODE, struct.pack(">H", mode & ~0o7777 | known.mode)))
            if known.links not in (None, struct.unpack_from(">I", raw, _LINKS)[0]):
                raise BuildError(f"xfs_db did not make all {known.links} names of a file")
    data, crc = bytearray(raw), struct.unpack_from("<I", raw, _CRC)[0]
    for place, new in changes:
        crc ^= delta.change(place, raw[place : place + len(new)], new)
        data[place : place + len(new)] = new
    struct.pack_into("<I", data, _CRC, crc)
    return bytes(data)


def _time(seconds: int) -> bytes:
    """A "bigtime": nanoseconds since the least 32-bit time."""
    return struct.pack(">Q", (seconds + _EPOCH) * 1_000_000_000)
