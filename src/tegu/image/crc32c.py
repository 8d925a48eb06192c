"""CRC-32C changed along with the data, without reading the data again.

File systems guard each inode or block with a CRC-32C (polynomial 0x1EDC6F41, reflected). CRCs are
linear: when some bytes of a message change, its CRC changes by the CRC of the difference, started
from zero. Python has no CRC-32C, and with this none is needed to edit a file system's metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

__all__ = ["Delta", "crc32c"]

_POLYNOMIAL = 0x82F63B78


@cache
def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


def crc32c(data: bytes, state: int = 0xFFFF_FFFF) -> int:
    """Return the CRC register after `data`, not inverted; slow, for small inputs."""
    table = _table()
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


class Delta:
    """How the CRC of a message of `length` bytes changes when bytes at `positions` change."""

    def __init__(self, length: int, positions: Iterable[int]) -> None:
        self.length = length
        wanted = set(positions)
        if not wanted or min(wanted) < 0 or max(wanted) >= length:
            raise ValueError("positions outside the message")
        self._tables: dict[int, tuple[int, ...]] = {}
        table = _table()
        bits = [table[1 << bit] for bit in range(8)]
        for position in range(length - 1, min(wanted) - 1, -1):
            if position in wanted:
                self._tables[position] = self._row(bits)
            bits = [table[b & 0xFF] ^ (b >> 8) for b in bits]

    @staticmethod
    def _row(bits: list[int]) -> tuple[int, ...]:
        row = [0] * 256
        for byte in range(1, 256):
            low = byte & -byte
            row[byte] = row[byte ^ low] ^ bits[low.bit_length() - 1]
        return tuple(row)

    def change(self, position: int, old: bytes, new: bytes) -> int:
        """Return what to XOR into the CRC when `old` at `position` becomes `new`."""
        total = 0
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                total ^= self._tables[position + i][a ^ b]
        return total
