"""The boot files of one kernel of a tree: when an image is made and when a kernel is updated."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tegu.boot.arch import Arch
from tegu.boot.initrd import build_initrd
from tegu.boot.loader import newest_first
from tegu.boot.modules import ModuleTree
from tegu.boot.slots import slot_osrel
from tegu.boot.uki import build_uki
from tegu.errors import BuildError

__all__ = ["build_kernel", "kernel_versions", "os_release"]

_VERITY = ("dm_mod", "dm_verity", "sha256_generic")


def kernel_file(root: Path, version: str) -> Path | None:
    """Return the kernel image of `version`, in /boot or beside its modules, if there is one."""
    for name in (f"boot/vmlinuz-{version}", f"usr/lib/modules/{version}/vmlinuz"):
        path = root / name
        if path.is_file():
            return path
    return None


def kernel_versions(root: Path) -> list[str]:
    """Return the versions of the kernels that a tree has with image and modules, newest first."""
    modules = root / "usr/lib/modules"
    if not modules.is_dir():
        return []
    names = [p.name for p in modules.iterdir() if (p / "modules.dep").is_file()]
    return newest_first(n for n in names if kernel_file(root, n) is not None)


def os_release(root: Path) -> str:
    """Return the text of os-release(5), or a minimal one."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        path = root / name
        # An absolute link would lead out of the tree.
        if path.is_file() and not (path.is_symlink() and str(path.readlink()).startswith("/")):
            return path.read_text(errors="replace")
    return "ID=linux\nPRETTY_NAME=Linux\n"


def build_kernel(
    root: Path,
    version: str,
    *,
    arch: Arch,
    stub: Path,
    busybox: Path,
    cmdline: str,
    initrd: str,
    filesystem: str,
    modules: Iterable[str] = (),
    timestamp: int,
    verity: Path | None = None,
) -> bytes:
    """Return the unified image of kernel `version` of the tree `root`.

    `stub` and `busybox` may lie outside of it. With `initrd` "none" the kernel must have the root's
    file system built in. With `verity`, a tree that has dmsetup(8), it is for a slot of the
    immutable layout (`tegu.boot.slots`). Raises BuildError for what is missing or damaged.
    """
    path = kernel_file(root, version)
    if path is None:
        raise BuildError(
            f"the tree has no image of kernel {version} (boot/vmlinuz-{version})",
            hint="is the kernel's package installed in it?",
        )
    tree = ModuleTree(root, version)
    if not tree.has(filesystem):
        raise BuildError(
            f"kernel {version} has no {filesystem} file system",
            hint="choose another kernel.package or image.filesystem",
        )
    packed = None
    if initrd == "minimal":
        packed = build_initrd(
            root,
            version,
            modules if verity is None else (*modules, *_VERITY),
            busybox,
            timestamp,
            optional=arch.modules,
            filesystems=_file_systems(filesystem, verity is not None),
            verity=verity,
        )
    elif filesystem not in tree.builtin:
        raise BuildError(
            f"kernel {version} cannot mount {filesystem} without an initrd: it is a module",
            hint='set kernel.initrd = "minimal"',
        )
    try:
        stub_data = stub.read_bytes()
        kernel = path.read_bytes()
    except OSError as e:
        raise BuildError(
            f"cannot read {e.filename}: {e.strerror}", hint="install systemd-boot-efi"
        ) from e
    return build_uki(
        stub_data,
        kernel,
        cmdline=cmdline,
        os_release=os_release(root) if verity is None else slot_osrel(os_release(root)),
        uname=version,
        initrd=packed,
    )


def _file_systems(root: str, slots: bool) -> tuple[str, ...]:
    """A root that cannot be written to gets an overlay; /var beside slots is ext4."""
    if slots:
        return (root, "overlay", "ext4")
    return (root, "overlay") if root == "erofs" else (root,)
