"""What a disk is to be: one value that says everything, and the identifiers that follow from it."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from uuid import UUID

from tegu.boot import Arch, arch_of
from tegu.boot.slots import PLACES, SLOTS, Places
from tegu.errors import BuildError, UnsupportedError
from tegu.image.filesystems import FILE_SYSTEMS
from tegu.image.partition import MIB

__all__ = ["DiskSpec", "fstab", "kernel_cmdline", "tree_files"]

MOUNT_POINT = "/efi"
"""Where the ESP is mounted when someone asks for it (systemd's file-hierarchy(7))."""


@dataclass(frozen=True)
class DiskSpec:
    """A disk to be built.

    `name` and `version` are the system's; `architecture` is a name of `tegu.boot.ARCHES`; `size` is
    in bytes, None for as small as the tree allows; `firmware` any of "uefi" and "bios"; `esp_size`
    in bytes. `seed` (hex) gives every UUID and hash seed, `timestamp` (seconds) every date.
    `cmdline` are words after root=; `modules` must be in the initrd on top of the usual ones.
    `layout` is "plain" or "immutable", whose slots have `slot_size` bytes each and
    are signed by `secure_boot` (private key and certificate, PEM) if there is one. `kernel_version`
    None means the newest kernel of the tree starts, and all others can be chosen.
    """

    name: str
    version: str
    architecture: str
    size: int | None
    filesystem: str
    firmware: tuple[str, ...]
    esp_size: int
    seed: str
    timestamp: int
    cmdline: tuple[str, ...] = ()
    initrd: str = "minimal"
    modules: tuple[str, ...] = ()
    kernel_version: str | None = None
    title: str = ""
    layout: str = "plain"
    slot_size: int = 0
    secure_boot: tuple[Path, Path] | None = None

    def __post_init__(self) -> None:
        if self.filesystem not in FILE_SYSTEMS:
            raise UnsupportedError(f"the root file system {self.filesystem}")
        if not self.firmware or not set(self.firmware) <= {"uefi", "bios"}:
            raise BuildError(f"firmware is uefi, bios or both, not {list(self.firmware)}")
        if self.initrd not in ("minimal", "none"):
            raise BuildError(f"an initrd is minimal or none, not {self.initrd}")
        if not re.fullmatch(r"(?:[0-9a-f]{2}){8,}", self.seed):
            raise BuildError("the seed of a disk is at least 16 hexadecimal digits")
        if "bios" in self.firmware and self.arch.grub is None:
            raise UnsupportedError(
                f"legacy BIOS boot on {self.architecture}: its firmware is always UEFI",
                hint='set image.firmware = ["uefi"]',
            )
        if self.layout == "immutable" and (
            self.filesystem != "erofs" or self.firmware != ("uefi",) or self.slot_size < MIB
        ):
            raise BuildError("slots are erofs, boot under UEFI only, and have a size")
        for word in self.cmdline:
            if not word or re.search(r"[\s\x00-\x1f\x7f]", word):
                raise BuildError(f"the kernel command line has the word {word!r}")

    @property
    def arch(self) -> Arch:
        return arch_of(self.architecture)

    @cached_property
    def _key(self) -> bytes:
        return bytes.fromhex(self.seed)

    def uuid(self, purpose: str) -> UUID:
        """Return the UUID for a purpose: the same seed and purpose give the same one."""
        digest = hmac.digest(self._key, purpose.encode(), "sha256")
        # Version 8 is for UUIDs of one's own making (RFC 9562).
        raw = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(3 << 62) | 8 << 76 | 2 << 62
        return UUID(int=raw)

    @property
    def volume_id(self) -> int:
        """The serial number of the ESP's FAT file system."""
        return int.from_bytes(hmac.digest(self._key, b"esp volume", "sha256")[:4], "big")

    @property
    def root_partuuid(self) -> UUID:
        return self.uuid("root partition")

    @property
    def esp_partuuid(self) -> UUID:
        return self.uuid("esp partition")

    @property
    def places(self) -> Places:
        """The partitions of the immutable layout."""
        a, b = ((str(self.uuid(f"slot {s} root")), str(self.uuid(f"slot {s} tree"))) for s in SLOTS)
        return Places(
            name=self.name,
            version=self.version,
            architecture=self.architecture,
            created=self.timestamp,
            esp=str(self.esp_partuuid),
            data=str(self.uuid("var partition")),
            slots=(a, b),
        )


def kernel_cmdline(spec: DiskSpec) -> str:
    """Return the kernel command line of a disk.

    The root is named by its partition's UUID, which kernel and initrd both understand, and is
    mounted writable at once: a file system with a journal needs no check before that. In the
    immutable layout it is the slot that has the root hash, which is added when that is known.
    """
    if spec.layout == "immutable":
        # A slot that does not come up must start again, or nobody ever gets back to the other one.
        again = [] if any(w.startswith("panic=") for w in spec.cmdline) else ["panic=10"]
        return " ".join([*spec.places.words(), "ro", *again, *spec.cmdline])
    kind = FILE_SYSTEMS[spec.filesystem]
    words = [f"root=PARTUUID={spec.root_partuuid}", f"rootfstype={kind.name}"]
    if kind.flags:
        words.append(f"rootflags={kind.flags}")
    words.append("rw" if kind.writable else "ro")
    if not kind.writable and spec.initrd == "minimal":
        words.append("tegu.overlay")
    return " ".join([*words, *spec.cmdline])


def fstab(spec: DiskSpec) -> str:
    """Return /etc/fstab.

    The root is not in it: the kernel's command line mounts it as it shall be, and without a line
    systemd starts no service to mount it again. Growth is `tegu-grow.service`, which only runs when
    the initrd saw room behind the root partition. The ESP is mounted only when asked for, so that
    nothing writes to it by accident and boot does not wait for it.
    """
    make = "" if spec.layout == "immutable" else ",X-mount.mkdir"
    options = f"noauto,umask=0077,flush{make}"
    return (
        "# Made by tegu. The root file system is named on the kernel's command line.\n"
        f"PARTUUID={spec.esp_partuuid} {MOUNT_POINT} vfat {options} 0 0\n"
    )


def tree_files(spec: DiskSpec) -> dict[str, str]:
    """Return files that the tree must have for this disk, by path relative to its root.

    The last two tell the host half how to make the boot files of the next kernel. With slots there
    is one that says where they are: kernels come with them.
    """
    if spec.layout == "immutable":
        return {"etc/fstab": fstab(spec), PLACES: spec.places.dump()}
    modules = ", ".join(f'"{m}"' for m in spec.modules)
    firmware = ", ".join(f'"{f}"' for f in spec.firmware)
    boot = (
        "# How `tegu host kernel` makes the boot files of a kernel. Made by tegu.\n"
        f'name = "{spec.name}"\n'
        f'architecture = "{spec.architecture}"\n'
        f"firmware = [{firmware}]\n"
        f'filesystem = "{spec.filesystem}"\n'
        f'initrd = "{spec.initrd}"\n'
        f"modules = [{modules}]\n"
        f'esp = "{spec.esp_partuuid}"\n'
        "keep = 2\n"
    )
    return {
        "etc/fstab": fstab(spec),
        "etc/kernel/cmdline": kernel_cmdline(spec) + "\n",
        "etc/tegu/boot.toml": boot,
    }


def mib(size: int) -> int:
    """Return `size` in MiB, rounded up."""
    return -(-size // MIB)
