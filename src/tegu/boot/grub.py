"""Legacy BIOS boot without grub-install, which wants root and a block device.

Three pieces start a machine (GRUB manual, "BIOS installation", and the comments in GRUB's
grub-core/boot/i386/pc/{boot,diskboot}.S): `boot.img` in the first sector, which loads one sector
of `core.img`, which loads the rest of `core.img` from a list of blocks at its end. Here core.img
lies in one piece in the BIOS boot partition, so that the list has one entry.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tegu.boot.arch import Arch
from tegu.errors import BuildError, UnsupportedError

__all__ = ["MODULES", "boot_code", "early_config", "make_core", "place_core"]

MODULES: tuple[str, ...] = (
    "biosdisk",
    "part_gpt",
    "fat",
    "search_fs_uuid",
    "normal",
    "linux",
    "loopback",
    "serial",
    "terminal",
    "minicmd",
    "ls",
    "cat",
    "echo",
    "test",
    "halt",
    "reboot",
)
"""What core.img holds: enough to read the ESP and start a kernel from it, and a rescue prompt."""

_SECTOR = 512
_CODE_END = 0x1B8  # the disk signature and the partition table follow
_KERNEL_SECTOR = 0x5C  # u64: the first sector of core.img
_BOOT_DRIVE = 0x64  # u8: 0xff is "the drive that the BIOS names"
_DRIVE_CHECK = 0x66  # a jump; two no-ops make boot.img correct drive numbers that cannot be disks
_BLOCK_LIST = _SECTOR - 12  # u64 start, u16 sectors, u16 segment
_LOAD_SEGMENT = 0x820


def early_config(esp_volume_id: int) -> str:
    """Return what core.img does first: find the ESP by its FAT serial number."""
    serial = f"{esp_volume_id >> 16:04X}-{esp_volume_id & 0xFFFF:04X}"
    return f"search.fs_uuid {serial} root\nset prefix=($root)/grub\n"


def make_core(
    run: Callable[[Sequence[str], Path], object], arch: Arch, scratch: Path, config: str
) -> bytes:
    """Return core.img with `config` embedded.

    `run(argv, directory)` runs grub-mkimage where it can read and write `directory`. Raises
    UnsupportedError on an architecture without legacy BIOS, BuildError when nothing came out.
    """
    if arch.grub is None:
        raise UnsupportedError(f"legacy BIOS boot on {arch.name}: its firmware is always UEFI")
    with tempfile.TemporaryDirectory(prefix="grub-", dir=scratch) as name:
        directory = Path(name)
        early, core = directory / "early.cfg", directory / "core.img"
        early.write_text(config)
        options = ["-O", arch.grub, "-d", f"/usr/lib/grub/{arch.grub}", "-p", "/grub"]
        argv = ["grub-mkimage", *options, "-c", str(early), "-o", str(core), *MODULES]
        run(argv, directory)
        try:
            return core.read_bytes()
        except FileNotFoundError:
            raise BuildError("grub-mkimage left no core.img") from None


def boot_code(boot_img: bytes, core_sector: int) -> bytes:
    """Return the code of the first sector (440 bytes), which loads core.img from `core_sector`."""
    if len(boot_img) != _SECTOR or boot_img[510:] != b"\x55\xaa":
        raise BuildError("GRUB's boot.img is damaged: it is not a boot sector")
    if struct.unpack_from("<Q", boot_img, _KERNEL_SECTOR)[0] != 1 or boot_img[_BOOT_DRIVE] != 0xFF:
        raise BuildError("GRUB's boot.img has a layout that is not known here")
    code = bytearray(boot_img[:_CODE_END])
    struct.pack_into("<Q", code, _KERNEL_SECTOR, core_sector)
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    return bytes(code)


def place_core(core: bytes, core_sector: int, room: int) -> bytes:
    """Return core.img as it lies on the disk from `core_sector` on, in at most `room` bytes."""
    if len(core) > room:
        raise BuildError(
            f"GRUB's core.img ({len(core)} bytes) does not fit its partition ({room} bytes)"
        )
    sectors = -(-len(core) // _SECTOR)
    if sectors < 2:
        raise BuildError("GRUB's core.img is damaged: it is too short")
    (segment,) = struct.unpack_from("<H", core, _BLOCK_LIST + 10)
    if segment != _LOAD_SEGMENT:
        raise BuildError("GRUB's core.img has a layout that is not known here")
    placed = bytearray(core) + bytes(sectors * _SECTOR - len(core))
    struct.pack_into("<QHH", placed, _BLOCK_LIST, core_sector + 1, sectors - 1, _LOAD_SEGMENT)
    return bytes(placed)
