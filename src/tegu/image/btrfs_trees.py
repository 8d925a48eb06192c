"""Make a fresh btrfs image independent of the clock and of chance.

mkfs.btrfs takes a random UUID for its chunk tree, which is in the header of every tree block, one
for the top subvolume, and the present for creation times. Here they are given, and access and
change times of all files become the build's timestamp. The image must use xxhash checksums, which
Python can compute quickly, unlike CRC-32C. Blocks that mkfs.btrfs wrote and gave up again are left
behind with what they had; `settle_trees` says what is part of the file system.

Offsets are those of the kernel's include/uapi/linux/btrfs_tree.h; numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import IO
from uuid import UUID

from tegu.errors import BuildError

__all__ = ["settle_trees"]

_SUPER = 64 << 10
_SUPERS = (_SUPER, 64 << 20, 256 << 30)
_DATA_CHUNK = 1
_HEADER = 101
_KEY = struct.Struct("<QBQ")
_ITEM = struct.Struct("<QBQII")
_POINTER = struct.Struct("<QBQQQ")
_CHUNK_TREE_UUID = 0x40
_INODE_ITEM, _ROOT_ITEM, _DEV_EXTENT, _CHUNK_ITEM, _UUID_SUBVOL = 1, 132, 204, 228, 251
_INODE_TIMES = 112  # atime, ctime, mtime, otime: u64 seconds and u32 nanoseconds each
_ROOT_UUID, _ROOT_TIMES = 247, 327
_XXHASH = 1
_FIRST_FILE_TREE, _LAST_FILE_TREE, _TOP = 256, (1 << 64) - 256, 5


class _Image:
    def __init__(self, f: IO[bytes], seed: Callable[[str], UUID], timestamp: int) -> None:
        import xxhash

        self.f = f
        self.hash: Callable[[memoryview], int] = xxhash.xxh64_intdigest
        self.chunk_tree_uuid = seed("chunk tree").bytes
        self.top_uuid = seed("top subvolume").bytes
        self.time = struct.pack("<QI", timestamp, 0)
        self.timestamp = timestamp
        self.live = [(place, place + 4096) for place in _SUPERS]
        f.seek(_SUPER)
        sb = f.read(4096)
        if sb[0x40:0x48] != b"_BHRfS_M":
            raise BuildError("mkfs.btrfs left no btrfs file system")
        if struct.unpack_from("<H", sb, 0xC4)[0] != _XXHASH:
            raise BuildError("mkfs.btrfs made other checksums than it was asked for")
        self.root, self.chunk_root = struct.unpack_from("<QQ", sb, 0x50)
        (self.node,) = struct.unpack_from("<I", sb, 0x94)
        (size,) = struct.unpack_from("<I", sb, 0xA0)
        self.chunks: list[tuple[int, int, list[int]]] = []
        at, end = 0x32B, 0x32B + size
        while at < end:
            _, _, logical = _KEY.unpack_from(sb, at)
            at += _KEY.size
            at += self.add_chunk(logical, sb[at:])

    def add_chunk(self, logical: int, item: bytes) -> int:
        (length,) = struct.unpack_from("<Q", item)
        stripes = int(struct.unpack_from("<H", item, 44)[0])
        places = [struct.unpack_from("<Q", item, 48 + 32 * i + 8)[0] for i in range(stripes)]
        if all(start != logical for start, _, _ in self.chunks):
            self.chunks.append((logical, length, places))
            if struct.unpack_from("<Q", item, 24)[0] & _DATA_CHUNK:
                self.live += [(place, place + length) for place in places]
        return 48 + 32 * stripes

    def checksum(self, block: bytearray) -> int:
        return int(self.hash(memoryview(block)[32:]))

    def places(self, logical: int) -> list[int]:
        for start, length, places in self.chunks:
            if start <= logical < start + length:
                return [place + logical - start for place in places]
        raise BuildError("mkfs.btrfs left a block outside all chunks")

    def walk(self, logical: int) -> Iterator[tuple[int, bytearray]]:
        """Yield the blocks of a tree, and write back what the caller changed in them."""
        places = self.places(logical)
        self.f.seek(places[0])
        raw = self.f.read(self.node)
        if struct.unpack_from("<Q", raw, 0x30)[0] != logical:
            raise BuildError("mkfs.btrfs left a tree with a block that is none")
        block = bytearray(raw)
        block[_CHUNK_TREE_UUID : _CHUNK_TREE_UUID + 16] = self.chunk_tree_uuid
        count, level = struct.unpack_from("<IB", block, 0x60)
        yield level, block
        self.clear_unused(block, count, level)
        struct.pack_into("<Q", block, 0, self.checksum(block))
        if block != raw:
            for place in places:
                self.f.seek(place)
                self.f.write(block)
        self.live += [(place, place + self.node) for place in places]
        if level:
            children = [
                _POINTER.unpack_from(block, _HEADER + i * _POINTER.size)[3] for i in range(count)
            ]
            for child in children:
                yield from self.walk(child)

    def clear_unused(self, block: bytearray, count: int, level: int) -> None:
        """Clear what a block had before it was split or shrunk: item data grows from its end."""
        start = _HEADER + count * (_POINTER.size if level else _ITEM.size)
        end = len(block)
        if level == 0 and count:
            end = min(place for *_, place in self.items(block))
        block[start:end] = bytes(end - start)

    def items(self, block: bytearray) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (header's place, objectid, type, key's offset, data's place) of a leaf's items."""
        (count,) = struct.unpack_from("<I", block, 0x60)
        for i in range(count):
            at = _HEADER + i * _ITEM.size
            objectid, kind, offset, place, _ = _ITEM.unpack_from(block, at)
            yield at, objectid, kind, offset, _HEADER + place


def settle_trees(
    f: IO[bytes], seed: Callable[[str], UUID], timestamp: int
) -> list[tuple[int, int]]:
    """Settle all trees of the file system in `f`; returns the parts (start, end) that belong to it.

    `seed` gives the UUIDs. Raises BuildError when the file system is not as it was asked for.
    """
    image = _Image(f, seed, timestamp)
    for level, block in image.walk(image.chunk_root):
        if level == 0:
            for _, _, kind, logical, place in image.items(block):
                if kind == _CHUNK_ITEM:
                    image.add_chunk(logical, bytes(block[place:]))
    trees: dict[int, int] = {}
    for level, block in image.walk(image.root):
        if level == 0:
            for _, tree, kind, _, place in image.items(block):
                if kind == _ROOT_ITEM:
                    trees[tree] = struct.unpack_from("<Q", block, place + 176)[0]
                    _settle_root(image, block, place, top=tree == _TOP)
                elif kind == _INODE_ITEM:
                    _settle_inode(image, block, place)
    for logical in trees.values():
        for level, block in image.walk(logical):
            if level == 0:
                _settle_leaf(image, block)
    return sorted(image.live)


def _settle_leaf(image: _Image, block: bytearray) -> None:
    for at, _, kind, _, place in image.items(block):
        if kind == _INODE_ITEM:
            _settle_inode(image, block, place)
        elif kind == _DEV_EXTENT:
            block[place + 32 : place + 48] = image.chunk_tree_uuid
        elif kind == _UUID_SUBVOL:
            low, high = struct.unpack("<QQ", image.top_uuid)
            struct.pack_into("<Q", block, at, low)
            struct.pack_into("<Q", block, at + 9, high)


def _settle_root(image: _Image, block: bytearray, place: int, *, top: bool) -> None:
    if top:
        block[place + _ROOT_UUID : place + _ROOT_UUID + 16] = image.top_uuid
    for at in (place + _ROOT_TIMES, place + _ROOT_TIMES + 12):
        if block[at : at + 8] != bytes(8):
            block[at : at + 12] = image.time
    _settle_inode(image, block, place)


def _settle_inode(image: _Image, block: bytearray, place: int) -> None:
    at = place + _INODE_TIMES
    if block[at : at + 48] == bytes(48):  # the inode inside a root item is mostly not used
        return
    mtime = min(struct.unpack_from("<Q", block, at + 24)[0], image.timestamp)
    block[at : at + 48] = image.time + image.time + struct.pack("<QI", mtime, 0) + image.time
