"""Make the superblocks of a fresh ext4 image independent of holes in the files it was made of.

mke2fs counts what it writes in `s_kbytes_written`. A zero block of a source file is written or
not, depending on whether the file has a hole there; that is a matter of how the file came to be,
not of its content. So the count becomes zero in the superblock and in all its copies.

Offsets are those of the kernel's Documentation/filesystems/ext4/super.rst; copies stand in groups
0, 1 and the powers of 3, 5 and 7 (sparse_super, blockgroup.rst).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

from tegu.errors import BuildError
from tegu.image.crc32c import crc32c

__all__ = ["settle_written"]

_SIZE = 1024
_KBYTES_WRITTEN = slice(0x178, 0x180)
_CHECKSUM = 0x3FC


def settle_written(f: IO[bytes], offset: int) -> int:
    """Settle all superblocks of the file system at `offset` of `f`; returns how many there are."""
    f.seek(offset + 1024)
    first = f.read(_SIZE)
    if len(first) < _SIZE or first[0x38:0x3A] != b"\x53\xef":
        raise BuildError("mke2fs left no ext4 file system")
    blocks_low, first_block = struct.unpack_from("<I12xI", first, 0x4)
    (blocks_high,) = struct.unpack_from("<I", first, 0x150)
    block_size = 1024 << struct.unpack_from("<I", first, 0x18)[0]
    (per_group,) = struct.unpack_from("<I", first, 0x20)
    blocks = blocks_low | blocks_high << 32
    copies = _groups_with_copy(-(-(blocks - first_block) // per_group))
    places = [1024, *((first_block + group * per_group) * block_size for group in copies)]
    for place in places:
        f.seek(offset + place)
        copy = bytearray(f.read(_SIZE))
        if copy[0x38:0x3A] != b"\x53\xef":
            raise BuildError("mke2fs made an ext4 with other features than it was asked for")
        copy[_KBYTES_WRITTEN] = bytes(8)
        struct.pack_into("<I", copy, _CHECKSUM, crc32c(bytes(copy[:_CHECKSUM])))
        f.seek(offset + place)
        f.write(copy)
    return len(places)


def _groups_with_copy(groups: int) -> Iterator[int]:
    """Yield the numbers, but 0, of the groups that start with a copy of the superblock."""
    if groups > 1:
        yield 1
    for base in (3, 5, 7):
        group = base
        while group < groups:
            yield group
            group *= base
