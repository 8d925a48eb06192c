"""Make the inodes of a fresh ext4 image independent of when its source was read or linked.

mke2fs copies access and change times from the source tree. Neither is part of what a system is: a
tree restored from a cache has others than one just unpacked. Here both become the build's
timestamp, and later modification times are clamped to it, each inode's checksum following.

Offsets are those of the kernel's Documentation/filesystems/ext4 (super.rst, group_descr.rst,
inodes.rst).
"""

from __future__ import annotations

import struct
from typing import IO

from tegu.errors import BuildError
from tegu.image.crc32c import Delta

__all__ = ["settle_times"]

_ATIME, _CTIME, _MTIME, _CTIME_EXTRA = 0x08, 0x0C, 0x10, 0x84
_CHECKSUM_LOW, _CHECKSUM_HIGH = 0x7C, 0x82
_INODE_SIZE = 256
_METADATA_CSUM = 0x400
_BIT64 = 0x80
_INODE_UNUSED = 0x1


def _encode(seconds: int) -> tuple[bytes, bytes]:
    """Return a time as its field and its extra field, which holds two more bits of the epoch."""
    low = seconds & 0xFFFF_FFFF
    signed = low - (1 << 32) if low & 0x8000_0000 else low
    return struct.pack("<I", low), struct.pack("<I", ((seconds - signed) >> 32) & 3)


def settle_times(f: IO[bytes], offset: int, timestamp: int) -> int:
    """Settle all inodes of the file system at `offset` of `f`; returns how many were changed."""
    f.seek(offset + 1024)
    sb = f.read(1024)
    if len(sb) < 1024 or sb[0x38:0x3A] != b"\x53\xef":
        raise BuildError("mke2fs left no ext4 file system")
    inodes, blocks, first_block = (struct.unpack_from("<I", sb, o)[0] for o in (0x0, 0x4, 0x14))
    block_size = 1024 << struct.unpack_from("<I", sb, 0x18)[0]
    (per_group,) = struct.unpack_from("<I", sb, 0x28)
    (size,) = struct.unpack_from("<H", sb, 0x58)
    incompat, ro_compat = struct.unpack_from("<II", sb, 0x60)
    if size != _INODE_SIZE or not ro_compat & _METADATA_CSUM or not incompat & _BIT64 or not blocks:
        raise BuildError("mke2fs made an ext4 with other features than it was asked for")
    (descriptor,) = struct.unpack_from("<H", sb, 0xFE)
    groups = inodes // per_group
    f.seek(offset + (first_block + 1) * block_size)
    table = f.read(groups * descriptor)
    settler = _Settler(timestamp)
    for group in range(groups):
        at = group * descriptor
        low, flags, unused = struct.unpack_from("<I6xH8xH", table, at + 8)
        (high,) = struct.unpack_from("<I", table, at + 0x28)
        (unused_high,) = struct.unpack_from("<H", table, at + 0x32)
        used = per_group - (unused | unused_high << 16)
        if flags & _INODE_UNUSED or used <= 0:
            continue
        place = offset + (low | high << 32) * block_size
        f.seek(place)
        chunk = bytearray(f.read(used * size))
        settler.settle(chunk)
        f.seek(place)
        f.write(chunk)
    return settler.changed


class _Settler:
    """Changes inodes; many share their old times, so the change of the checksum is remembered."""

    def __init__(self, timestamp: int) -> None:
        self.timestamp = timestamp
        self.changed = 0
        spots = [*range(_ATIME, _MTIME + 4), *range(_CTIME_EXTRA, _CTIME_EXTRA + 12)]
        self._delta = Delta(_INODE_SIZE, spots)
        self._known: dict[bytes, tuple[bytes, bytes, int]] = {}

    def _new(self, times: bytes) -> tuple[bytes, bytes, int]:
        old, old_extra = times[:12], times[12:]
        now, now_extra = _encode(self.timestamp)
        (mtime,), (mtime_extra,) = (
            struct.unpack("<i", old[8:12]),
            struct.unpack("<I", old_extra[4:8]),
        )
        seconds = mtime + ((mtime_extra & 3) << 32)
        kept, kept_extra = _encode(min(seconds, self.timestamp))
        new, new_extra = now + now + kept, now_extra + kept_extra + now_extra
        change = self._delta.change(_ATIME, old, new)
        change ^= self._delta.change(_CTIME_EXTRA, old_extra, new_extra)
        return new, new_extra, change

    def settle(self, chunk: bytearray) -> None:
        for at in range(0, len(chunk), _INODE_SIZE):
            if chunk[at : at + 2] == b"\0\0":  # no mode: not in use, or reserved
                continue
            fields, extra = at + _ATIME, at + _CTIME_EXTRA
            times = bytes(chunk[fields : fields + 12] + chunk[extra : extra + 12])
            known = self._known.get(times)
            if known is None:
                known = self._known[times] = self._new(times)
            new, new_extra, change = known
            if not change:
                continue
            chunk[fields : fields + 12] = new
            chunk[extra : extra + 12] = new_extra
            low, high = at + _CHECKSUM_LOW, at + _CHECKSUM_HIGH
            chunk[low] ^= change & 0xFF
            chunk[low + 1] ^= (change >> 8) & 0xFF
            chunk[high] ^= (change >> 16) & 0xFF
            chunk[high + 1] ^= change >> 24
            self.changed += 1
