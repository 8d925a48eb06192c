"""What differs between processor architectures when a machine boots: one table, one place.

Partition type GUIDs are those of the UAPI Discoverable Partitions Specification; file names on the
ESP those of the UEFI specification (3.5.1.1, removable media) and of systemd-boot(7).
"""

from __future__ import annotations

from dataclasses import dataclass

from tegu.errors import UnsupportedError

__all__ = ["ARCHES", "STORAGE_MODULES", "Arch", "arch_of"]

STORAGE_MODULES: tuple[str, ...] = (
    "virtio_blk",
    "virtio_scsi",
    "virtio_pci",
    "nvme",
    "sd_mod",
    "hv_storvsc",
    "xen_blkfront",
)
"""Drivers of the disks that clouds attach: KVM (virtio), AWS Nitro (NVMe), Azure (Hyper-V), Xen."""


@dataclass(frozen=True, slots=True)
class Arch:
    """Names of one architecture.

    `tag` goes into image names, `oci` is GOARCH, `efi` the suffix of UEFI programs, `root_type` the
    partition type GUID of a root file system, `verity_type` that of its hash tree. `grub` is the
    GRUB platform for legacy BIOS boot, or None where firmware is always UEFI. `modules` are the
    initrd's drivers, loaded on demand; those that a kernel has built in or does not have are passed
    over.
    """

    name: str
    tag: str
    oci: str
    efi: str
    root_type: str
    verity_type: str
    grub: str | None
    modules: tuple[str, ...] = STORAGE_MODULES

    @property
    def stub(self) -> str:
        """Path of systemd's UEFI stub in a root file system."""
        return f"usr/lib/systemd/boot/efi/linux{self.efi}.efi.stub"

    @property
    def boot_loader(self) -> str:
        """Path of systemd-boot in a root file system."""
        return f"usr/lib/systemd/boot/efi/systemd-boot{self.efi}.efi"

    @property
    def removable(self) -> str:
        """Where firmware without boot entries looks for a program on the ESP."""
        return f"EFI/BOOT/BOOT{self.efi.upper()}.EFI"

    @property
    def installed_loader(self) -> str:
        """Where systemd-boot keeps itself on the ESP."""
        return f"EFI/systemd/systemd-boot{self.efi}.efi"


ARCHES: dict[str, Arch] = {
    "x86-64": Arch(
        name="x86-64",
        tag="x64",
        oci="amd64",
        efi="x64",
        root_type="4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        verity_type="2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
        grub="i386-pc",
        modules=(*STORAGE_MODULES, "ahci", "ata_piix"),
    ),
    "arm64": Arch(
        name="arm64",
        tag="arm64",
        oci="arm64",
        efi="aa64",
        root_type="b921b045-1df0-41c3-af44-4c6f280d3fae",
        verity_type="df3300ce-d69f-4c92-978c-9bfb0f38d820",
        grub=None,
        modules=(*STORAGE_MODULES, "virtio_mmio"),
    ),
}


def arch_of(name: str) -> Arch:
    """Return the table's row; raises UnsupportedError for an architecture we do not know."""
    try:
        return ARCHES[name]
    except KeyError:
        known = ", ".join(ARCHES)
        raise UnsupportedError(f"the architecture {name} (known: {known})") from None
