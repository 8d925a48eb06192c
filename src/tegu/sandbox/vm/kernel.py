"""The guest's kernel: found on this host, unpacked once to the form that starts fastest.

QEMU's microvm starts an uncompressed kernel by its PVH entry (arch/x86/platform/pvh in the kernel),
with neither firmware nor unpacking. The image in /boot holds that kernel compressed; where it
begins says the setup header (Documentation/arch/x86/boot.rst, payload_offset).
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from tegu.boot.cpio import Archive
from tegu.boot.modules import ModuleTree
from tegu.errors import BuildError, UnsupportedError
from tegu.files import atomic_file
from tegu.process import run
from tegu.sandbox.native import find_guest

__all__ = ["GuestKernel", "find_kernel", "initramfs", "unpack"]

_PROTOCOL = 0x0208  # of the boot protocol: the first that has payload_offset
_MODULES = ("overlay", "erofs", "virtio_mmio", "virtio_blk", "virtio_console", "ext4")
_ELF = b"\x7fELF"
_MOST = 256 * 2**20
_COMPRESSED = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"))


@dataclass(frozen=True)
class GuestKernel:
    """A kernel image of this host, and the tree in which its modules are."""

    image: Path
    version: str
    tree: Path


def find_kernel() -> GuestKernel:
    """Return the kernel that guests run: $TEGU_GUEST_KERNEL (an image), or the newest in /boot, of
    Tegu's own before others. Raises UnsupportedError when there is none."""
    named = os.environ.get("TEGU_GUEST_KERNEL")
    if named:
        return _described(Path(named))
    images = sorted(Path("/boot").glob("vmlinuz-*"), key=_rank, reverse=True)
    for image in images:
        try:
            return _described(image)
        except UnsupportedError:
            continue
    raise UnsupportedError(
        "there is no kernel for guests in /boot",
        hint="install linux-image-tegu or linux-image-cloud-amd64, or name an image with "
        "TEGU_GUEST_KERNEL",
    )


def _rank(image: Path) -> tuple[bool, tuple[int, ...]]:
    numbers = tuple(int(n) for n in re.findall(r"[0-9]+", image.name))
    return "tegu" in image.name, numbers


def _described(image: Path) -> GuestKernel:
    try:
        with image.open("rb") as f:
            head = f.read(65536)
    except OSError as e:
        raise UnsupportedError(f"the guests' kernel {image}: {e.strerror}") from e
    if len(head) < 0x260 or head[0x202:0x206] != b"HdrS":
        raise UnsupportedError(f"the guests' kernel {image} is no x86 kernel image")
    at = 0x200 + struct.unpack_from("<H", head, 0x20E)[0]
    version = head[at : at + 200].split(b"\0")[0].split(b" ")[0].decode(errors="replace")
    tree = image.resolve().parent.parent
    if not (tree / "usr/lib/modules" / version).is_dir():
        raise UnsupportedError(f"the guests' kernel {image} has no modules beside it ({version})")
    return GuestKernel(image, version, tree)


def payload(image: bytes) -> bytes:
    """Return what a kernel image holds compressed. Raises UnsupportedError when it is none."""
    if len(image) < 0x260 or image[0x202:0x206] != b"HdrS":
        raise UnsupportedError("this is no x86 kernel image")
    protocol = struct.unpack_from("<H", image, 0x206)[0]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    # The last four bytes say how long it is unpacked (scripts/Makefile.lib, size_append).
    if protocol < _PROTOCOL or length < 8 or start + length > len(image):
        raise UnsupportedError("the kernel image is damaged, or too old")
    return image[start : start + length - 4]


def unpack(kernel: GuestKernel, state: Path) -> Path:
    """Return the uncompressed kernel, kept in `state` by the image's hash.

    Raises UnsupportedError for a form of compression that this host has no program for.
    """
    image = kernel.image.read_bytes()
    target = state / "kernels" / hashlib.sha256(image).hexdigest()[:32]
    if target.exists():
        return target
    data = payload(image)
    program = next((p for magic, p in _COMPRESSED if data.startswith(magic)), None)
    if program is None:
        raise UnsupportedError(f"{kernel.image} is compressed in a way that is not known here")
    with atomic_file(target, mode=0o444) as f:
        done = run([program, "-dc"], stdin=data, stdout=f, check=False)
        f.flush()
        size = f.tell() if f.tell() else os.fstat(f.fileno()).st_size
        f.seek(0)
        if done.returncode not in (0, 2) or size > _MOST or os.pread(f.fileno(), 4, 0) != _ELF:
            raise UnsupportedError(f"{kernel.image} cannot be unpacked: {done.stderr.strip()}")
    return target


def initramfs(kernel: GuestKernel) -> bytes:
    """Return the archive that the guest's kernel begins with: our first process, and modules.

    Raises UnsupportedError without the compiled first process, or without a module.
    """
    guest = find_guest()
    if guest is None:
        raise UnsupportedError(
            "the guests' first process was not compiled",
            hint="there was no C compiler when this package was built",
        )
    archive = Archive(0)
    for directory in ("dev", "proc", "sys"):
        archive.directory(directory)
    archive.file("init", guest.read_bytes(), 0o755)
    try:
        tree = ModuleTree(kernel.tree, kernel.version)
        for i, module in enumerate(tree.closure(_MODULES)):
            archive.file(f"modules/{i:02}-{module.name}.ko", tree.read(module))
    except BuildError as e:
        raise UnsupportedError(f"the guests' kernel {kernel.version}: {e.message}") from e
    return archive.pack()
