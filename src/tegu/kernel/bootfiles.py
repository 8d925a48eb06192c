"""What a machine starts of a kernel's package: image, modules, and an initrd where it needs one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tegu.boot import ARCHES, ModuleTree, build_initrd
from tegu.errors import UnsupportedError, UsageError
from tegu.process import CommandError, require, run

__all__ = ["KernelFiles", "kernel_files", "package_version", "unpack_kernel"]

_ROOTS = ("ext4", "xfs", "btrfs", "erofs")
_DISK = "virtio_blk"
BUSYBOXES = ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox")


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel to start. `modules` is its directory of modules, None for one without any."""

    image: Path
    initrd: Path | None
    modules: Path | None


def package_version(deb: Path) -> str:
    """Return the version of a package file; UsageError when it is none."""
    dpkg = require("dpkg-deb", package="dpkg")
    done = run([dpkg, "--show", "--showformat=${Version}", deb], check=False)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{deb} is no package: {why}")
    return done.stdout


def unpack_kernel(deb: Path, directory: Path) -> KernelFiles:
    """Unpack the kernel package `deb` into `directory`, which must not exist.

    Raises UsageError when there is no kernel in it, UnsupportedError when it needs an initrd and
    there is no static busybox here to make one of.
    """
    directory.mkdir(parents=True)
    try:
        run([require("dpkg-deb", package="dpkg"), "--extract", deb, directory], timeout=900)
    except CommandError as e:
        raise UsageError(f"cannot unpack {deb.name}: {e.message}") from e
    images = sorted(directory.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise UsageError(f"{deb.name} has {len(images) or 'no'} kernels (boot/vmlinuz-*)")
    return kernel_files(directory, images[0], images[0].name.removeprefix("vmlinuz-"))


def kernel_files(root: Path, image: Path, release: str) -> KernelFiles:
    """Return what to start of the kernel `image`, with modules below `root` if it has any.

    An initrd is made unless the disk's driver and the root's file system are built in.
    """
    places = (root / "usr/lib/modules" / release, root / "lib/modules" / release)
    modules = next((p for p in places if p.is_dir()), None)
    if modules is None:
        return KernelFiles(image, None, None)
    if modules == places[1]:
        places[0].parent.mkdir(parents=True, exist_ok=True)
        modules = modules.rename(places[0])
        places[1].parent.rmdir()
    if not (modules / "modules.dep").is_file():
        # depmod(8) looks below lib/, which is a link to usr/lib in the systems of today.
        (root / "lib").mkdir(exist_ok=True)
        if not places[1].parent.exists():
            places[1].parent.symlink_to("../usr/lib/modules")
        run([require("depmod", package="kmod"), "-b", root, release], timeout=300)
    tree = ModuleTree(root, release)
    if _DISK in tree.builtin and "ext4" in tree.builtin:
        return KernelFiles(image, None, modules)
    busybox = next((Path(p) for p in BUSYBOXES if Path(p).is_file()), None)
    if busybox is None:
        raise UnsupportedError(
            f"kernel {release} needs an initrd, and there is no static busybox to make it of",
            hint="apt-get install busybox-static",
        )
    initrd = root / f"initrd-{release}"
    packed = build_initrd(
        root, release, (), busybox, 0, optional=ARCHES["x86-64"].modules, filesystems=_ROOTS
    )
    initrd.write_bytes(packed)
    return KernelFiles(image, initrd, modules)
