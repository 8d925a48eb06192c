"""How much memory the capture kernel needs: an estimate before it is loaded, and advice.

What it takes to run was measured (docs/kdump.md): from the reservation until makedumpfile starts,
and what makedumpfile takes itself.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Need", "advise", "estimate"]

MIB = 1 << 20
# A kernel of a cloud machine with its page array, drivers and caches, beside image and initrd.
_RUNNING = 28 * MIB
_MAKEDUMPFILE = 12 * MIB
# Over the network: ssh or curl, and packets under way.
_NETWORK = 16 * MIB
_STEP = 16 * MIB
_SMALLEST = 96 * MIB


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that the capture needs: for the kernel's image, the initrd (packed and unpacked), and
    to run."""

    image: int
    initrd: int
    running: int

    @property
    def total(self) -> int:
        return self.image + self.initrd + self.running


def estimate(image: int, packed: int, unpacked: int, total: int, *, network: bool) -> Need:
    """Estimate from the image's `init_size`, the initrd's sizes and the machine's memory (bytes).

    makedumpfile keeps two bitmaps with a bit per page of the machine, 64 KiB for each GiB.
    """
    bitmaps = 2 * total // 4096 // 8
    running = _RUNNING + _MAKEDUMPFILE + (_NETWORK if network else 0) + bitmaps
    return Need(image, packed + unpacked, running)


def advise(need: Need) -> int:
    """Return the reservation to ask for with crashkernel=: a quarter more, in steps of 16 MiB."""
    wanted = need.total + need.total // 4
    return max(_SMALLEST, -(-wanted // _STEP) * _STEP)
