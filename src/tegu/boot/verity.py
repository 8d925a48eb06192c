"""Hash trees of dm-verity: every block of a read-only root is checked when it is read.

The format is that of Documentation/admin-guide/device-mapper/verity.rst (hash type 1: the salt
comes first) with the superblock of veritysetup(8) in front, SHA-256, blocks of 4 KiB. It is made
here and not by veritysetup because a machine makes and checks it too, and should need no more
programs for that.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import IO
from uuid import UUID

from tegu.errors import BuildError

__all__ = ["BLOCK", "Verity", "hash_tree", "top_matches", "tree_size"]

BLOCK = 4096
HEAD = 2 * BLOCK
"""Bytes at the start of a hash tree, superblock and topmost block, without which it is none."""

_DIGEST = 32
_PER_BLOCK = BLOCK // _DIGEST
# struct verity_sb of cryptsetup's lib/verity/verity.c
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")


@dataclass(frozen=True, slots=True)
class Verity:
    """What the kernel must be told: root hash and salt (hex), and the number of data blocks."""

    root_hash: str
    salt: str
    blocks: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.blocks * BLOCK


def tree_size(data: int) -> int:
    """Return the bytes of the hash tree of `data` bytes, superblock included."""
    blocks = -(-data // BLOCK)
    total = 1
    while blocks > 1:
        blocks = -(-blocks // _PER_BLOCK)
        total += blocks
    return total * BLOCK


def hash_tree(data: IO[bytes], size: int, salt: bytes) -> tuple[Verity, bytes]:
    """Return the root hash of the first `size` bytes of `data`, and the tree with its superblock.

    The superblock's UUID follows from the salt, so that a machine that has data and salt can make
    the tree, the same bytes.

    Raises BuildError when `size` is not two whole blocks or more, or `data` is shorter.
    """
    if size % BLOCK or size < 2 * BLOCK:
        raise BuildError(f"dm-verity needs whole blocks of {BLOCK} bytes, at least two, not {size}")
    if not salt or len(salt) > 256:
        raise BuildError("a salt of dm-verity has 1 to 256 bytes")
    start = hashlib.sha256(salt)
    level = bytearray()
    for _ in range(size // BLOCK):
        block = data.read(BLOCK)
        if len(block) != BLOCK:
            raise BuildError("the file system became shorter while it was read")
        level += _digest(start, block)
    levels = []
    while True:
        level += bytes(-len(level) % BLOCK)
        levels.append(bytes(level))
        level = bytearray(
            b"".join(_digest(start, levels[-1][i : i + BLOCK]) for i in range(0, len(level), BLOCK))
        )
        if len(level) == _DIGEST:
            break
    verity = Verity(bytes(level).hex(), salt.hex(), size // BLOCK)
    uuid = UUID(bytes=hashlib.sha256(b"verity superblock" + salt).digest()[:16], version=4)
    head = _SUPERBLOCK.pack(
        b"verity\0\0", 1, 1, uuid.bytes, b"sha256", BLOCK, BLOCK, verity.blocks, len(salt), salt
    )
    return verity, head.ljust(BLOCK, b"\0") + b"".join(reversed(levels))


def top_matches(head: bytes, verity: Verity) -> bool:
    """Say whether `head`, the first HEAD bytes of a tree, is the top of the tree of `verity`."""
    if len(head) < HEAD:
        return False
    top = bytes.fromhex(verity.salt) + head[BLOCK:HEAD]
    return hashlib.sha256(top).hexdigest() == verity.root_hash


def _digest(start: hashlib._Hash, block: bytes) -> bytes:
    hasher = start.copy()
    hasher.update(block)
    return hasher.digest()
