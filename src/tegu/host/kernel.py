"""Kernels of a running machine: their boot files are made here when apt installs one.

The ESP holds one unified image per kernel (see `tegu.boot.loader`). The newest `keep` installed
kernels are there, and the one that runs, whatever its age. A new image is complete on the ESP
before any menu names it; an old one leaves only after that, unless it has to make room.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tegu.boot import (
    GRUB_CONFIG,
    Entry,
    arch_of,
    entry_of,
    grub_config,
    kernel_path,
    loader_files,
    newest_first,
)
from tegu.boot.build import build_kernel, kernel_file, kernel_versions
from tegu.boot.loader import KERNELS
from tegu.errors import BuildError, UsageError
from tegu.host.config import BootConfig, load_config
from tegu.host.esp import free_space, locked_esp, write_file

__all__ = ["Kernel", "KernelChange", "list_kernels", "remove_kernel", "update_kernels"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: whether its package is installed, its boot file's size (bytes, None if there is
    none), and whether it is the one that runs."""

    version: str
    installed: bool
    boot_file: int | None
    running: bool


@dataclass(frozen=True, slots=True)
class KernelChange:
    """What was done to one file of the ESP: `action` is written, kept or removed."""

    file: str
    action: str


@contextmanager
def _boot(root: Path, esp: Path | None) -> Iterator[tuple[BootConfig, Path]]:
    config = load_config(root)
    if esp is not None:
        yield config, esp
        return
    with locked_esp(root, config.esp) as mounted:
        yield config, mounted


def _on_esp(config: BootConfig, esp: Path) -> dict[str, Path]:
    """Return boot files by kernel version; boot counting may have added `+TRIES` to a name."""
    prefix, found = f"{config.name}-", {}
    for path in sorted((esp / KERNELS).glob("*.efi")):
        if path.name.startswith(prefix):
            name = path.stem.removeprefix(prefix)
            head, plus, tries = name.rpartition("+")
            counted = plus and tries.replace("-", "").isdigit()
            found[head if counted else name] = path
    return found


def list_kernels(root: Path = Path("/"), esp: Path | None = None) -> list[Kernel]:
    """Return the kernels that are installed or on the ESP, newest first."""
    with _boot(root, esp) as (config, mounted):
        there = _on_esp(config, mounted)
        installed = set(kernel_versions(root))
        running = platform.release()
        return [
            Kernel(
                version,
                version in installed,
                there[version].stat().st_size if version in there else None,
                version == running,
            )
            for version in newest_first(installed | set(there))
        ]


def update_kernels(
    root: Path = Path("/"), esp: Path | None = None, *, running: str | None = None
) -> list[KernelChange]:
    """Make the boot files of the newest kernels and the menus; remove those that are past `keep`.

    Raises BuildError when a kernel's files are damaged or the ESP is full; the machine then still
    boots what it booted before.
    """
    current = platform.release() if running is None else running
    with _boot(root, esp) as (config, mounted):
        installed = kernel_versions(root)
        if not installed:
            raise BuildError("no kernel is installed", hint="apt-get install a linux-image package")
        wanted = installed[: config.keep]
        there = _on_esp(config, mounted)
        images = {version: _image(root, config, version) for version in wanted}
        changes: list[KernelChange] = []
        stale = [v for v in there if v not in wanted and v != current]
        if _needed(mounted, config, images) > free_space(mounted):
            # Old kernels go first only when the new one has no room beside them.
            changes += [_unlink(mounted, there.pop(v)) for v in stale]
            stale = []
        for version, image in images.items():
            path = there.get(version)
            name = _name(mounted, path) if path is not None else kernel_path(config.name, version)
            written = write_file(mounted, name, image)
            changes.append(KernelChange(name, "written" if written else "kept"))
        removed = {v: there[v] for v in stale}
        changes += _menus(root, config, mounted, without=set(removed.values()))
        changes += [_unlink(mounted, path) for path in removed.values()]
        return changes


def remove_kernel(
    version: str, root: Path = Path("/"), esp: Path | None = None
) -> list[KernelChange]:
    """Remove the boot file of one kernel; raises UsageError when it is not there or the last."""
    with _boot(root, esp) as (config, mounted):
        there = _on_esp(config, mounted)
        if version not in there:
            known = ", ".join(newest_first(there)) or "none"
            raise UsageError(f"kernel {version} has no boot file (there are: {known})")
        if len(there) == 1:
            raise UsageError(
                f"kernel {version} is the only one on the ESP: without it nothing boots",
                hint="install another kernel first",
            )
        changes = _menus(root, config, mounted, without={there[version]})
        return [*changes, _unlink(mounted, there[version])]


def _image(root: Path, config: BootConfig, version: str) -> bytes:
    arch = arch_of(config.architecture)
    source = kernel_file(root, version)
    assert source is not None, "kernel_versions lists only kernels with an image"
    return build_kernel(
        root,
        version,
        arch=arch,
        stub=root / arch.stub,
        busybox=root / "usr/bin/busybox",
        cmdline=config.cmdline,
        initrd=config.initrd,
        filesystem=config.filesystem,
        modules=config.modules,
        timestamp=int(source.stat().st_mtime),
    )


def _needed(esp: Path, config: BootConfig, images: dict[str, bytes]) -> int:
    """Bytes that writing takes at its peak: a file that changes is there twice for a moment."""
    there = _on_esp(config, esp)
    total = peak = 0
    for version, image in images.items():
        old = there.get(version)
        if old is not None and old.read_bytes() == image:
            continue
        peak = max(peak, total + len(image))
        total += len(image) - (old.stat().st_size if old is not None else 0)
    return peak + (1 << 20)


def _menus(root: Path, config: BootConfig, esp: Path, *, without: set[Path]) -> list[KernelChange]:
    """Write boot loader and menus as they are without the files that are about to go."""
    files: dict[str, bytes] = {}
    if "uefi" in config.firmware:
        files |= loader_files(arch_of(config.architecture), root)
    if "bios" in config.firmware:
        entries = [
            _entry(esp, path) for path in _on_esp(config, esp).values() if path not in without
        ]
        files[GRUB_CONFIG] = grub_config(entries).encode()
    changes = []
    for name, data in files.items():
        written = write_file(esp, name, data)
        changes.append(KernelChange(name, "written" if written else "kept"))
    return changes


def _entry(esp: Path, path: Path) -> Entry:
    return entry_of(_name(esp, path), path.read_bytes())


def _name(esp: Path, path: Path) -> str:
    return path.relative_to(esp).as_posix()


def _unlink(esp: Path, path: Path) -> KernelChange:
    path.unlink(missing_ok=True)
    return KernelChange(_name(esp, path), "removed")
