"""The programs an image is made with, as packages: one table per architecture."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tegu.definition.models import Definition

__all__ = ["tools_for"]

_COMMON = (
    "busybox-static",
    "dosfstools",
    "dpkg",
    "e2fsprogs",
    "mtools",
    "zstd",
)
_FIRMWARE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"bios": ("grub-common", "grub-pc-bin"), "uefi": ()}
)
# The stub of a unified kernel image comes with systemd's boot loader; GRUB starts the same file.
_BOOT = ("systemd-boot-efi",)
_CONVERTED = frozenset({"qcow2", "vhd", "vhd-fixed"})
_FILESYSTEM: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ext4": (),
        "xfs": ("xfsprogs",),
        "btrfs": ("btrfs-progs",),
        "erofs": ("erofs-utils",),
    }
)


def tools_for(definition: Definition) -> tuple[str, ...]:
    """Return the names of the packages that hold what makes an image of `definition`."""
    names = {
        *_COMMON,
        *_BOOT,
        *_FILESYSTEM[definition.image.filesystem],
        *(name for firmware in definition.image.firmware for name in _FIRMWARE[firmware]),
    }
    if definition.image.layout == "immutable":
        names.add("dmsetup")  # for the initrd
    if definition.image.secure_boot_key is not None:
        names |= {"faketime", "sbsigntool"}
    if _CONVERTED & set(definition.image.formats):
        names.add("qemu-utils")
    return tuple(sorted(names))
