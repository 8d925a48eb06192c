"""From a tree to a disk: boot files, partitions, file systems, in one sparse raw image.

Everything is written in place, once; nothing is mounted and no privilege is needed beyond reading
the tree. The same tree and the same `DiskSpec` give the same bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tegu.boot import (
    GRUB_CONFIG,
    Entry,
    entry_of,
    grub_config,
    kernel_path,
    loader_files,
)
from tegu.boot.build import build_kernel, kernel_versions
from tegu.boot.grub import boot_code, early_config, make_core, place_core
from tegu.errors import BuildError
from tegu.image.esp import make_esp
from tegu.image.filesystems import FILE_SYSTEMS, Request, make_file_system, measure, too_large
from tegu.image.partition import (
    BIOS_BOOT,
    ESP,
    GROW_FILE_SYSTEM,
    MIB,
    READ_ONLY,
    SECTOR,
    Partition,
    Table,
    place,
    write_table,
)
from tegu.image.programs import Tools
from tegu.image.spec import DiskSpec, fstab, kernel_cmdline, tree_files

__all__ = ["DiskInfo", "DiskSpec", "build_disk", "fstab", "kernel_cmdline", "tree_files"]

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """A disk that was built: sizes in bytes, kernels newest first."""

    path: Path
    size: int
    table: Table
    kernels: tuple[str, ...]
    cmdline: str


def partitions_of(spec: DiskSpec, root_size: int) -> list[Partition]:
    """Return the partitions of a plain layout, the root last so that it can grow.

    This is the one place that knows the layout: another one is another list.
    """
    found = []
    if "bios" in spec.firmware:
        found.append(Partition("bios", BIOS_BOOT, spec.uuid("bios partition"), MIB))
    found.append(Partition("esp", ESP, spec.esp_partuuid, spec.esp_size))
    writable = FILE_SYSTEMS[spec.filesystem].writable
    found.append(
        Partition(
            "root",
            UUID(spec.arch.root_type),
            spec.root_partuuid,
            root_size,
            attributes=GROW_FILE_SYSTEM if writable else READ_ONLY,
        )
    )
    return found


def build_disk(
    root: Path, spec: DiskSpec, tools: Tools, out: Path, progress: Progress | None = None
) -> DiskInfo:
    """Build the raw image `out` from the complete tree `root`.

    `out` appears only when it is whole. Raises BuildError when the tree has no kernel, does not fit
    the disk (saying both sizes), or this machine's disk is full.
    """
    say = progress or (lambda _: None)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        say("boot files")
        files, entries = _boot_files(root, spec, tools)
        disk = scratch / "disk.raw"
        table = _plan(root, spec)
        with disk.open("wb") as f:
            os.truncate(f.fileno(), table.size)
        by_label = {p.label: p for p in table.partitions}
        # First of all: mkfs.erofs empties the file that it writes to.
        say(f"{spec.filesystem} root")
        place_of_root = by_label["root"]
        request = Request(
            root=root,
            disk=disk,
            offset=place_of_root.start,
            size=place_of_root.size,
            label="root",
            uuid=spec.uuid("root file system"),
            seed=lambda purpose: spec.uuid(f"root file system {purpose}"),
            timestamp=spec.timestamp,
            scratch=scratch,
        )
        make_file_system(spec.filesystem, request, tools)
        if disk.stat().st_size != table.size:
            os.truncate(disk, table.size)
        say("ESP")
        esp = by_label["esp"]
        make_esp(
            files,
            disk,
            esp.start,
            esp.size,
            volume_id=spec.volume_id,
            timestamp=spec.timestamp,
            tools=tools,
            scratch=scratch,
        )
        say("boot loader")
        code = _bios_boot(spec, tools, disk, by_label.get("bios"), scratch)
        with disk.open("r+b") as f:
            write_table(f, table, code=code)
            f.flush()
            os.fsync(f.fileno())
        disk.rename(out)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise BuildError(
                f"no space left in {out.parent}", hint="free some space, or build elsewhere"
            ) from e
        raise BuildError(f"cannot build {out.name}: {e.strerror}: {e.filename}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return DiskInfo(out, table.size, table, tuple(e.version for e in entries), kernel_cmdline(spec))


def _boot_files(root: Path, spec: DiskSpec, tools: Tools) -> tuple[dict[str, bytes], list[Entry]]:
    versions = kernel_versions(root)
    if spec.kernel_version is not None:
        versions = [spec.kernel_version]
    if not versions:
        raise BuildError(
            "the tree has no kernel, so no disk can boot from it",
            hint="set kernel.package, or ask for the formats directory, tar or oci only",
        )
    files: dict[str, bytes] = {}
    entries = []
    for version in versions:
        path = kernel_path(spec.name, version)
        files[path] = build_kernel(
            root,
            version,
            arch=spec.arch,
            stub=tools.path(spec.arch.stub),
            busybox=tools.path("usr/bin/busybox"),
            cmdline=kernel_cmdline(spec),
            initrd=spec.initrd,
            filesystem=spec.filesystem,
            modules=spec.modules,
            timestamp=spec.timestamp,
        )
        entries.append(entry_of(path, files[path]))
    if "uefi" in spec.firmware:
        files |= loader_files(spec.arch, tools.path("."))
    if "bios" in spec.firmware:
        files[GRUB_CONFIG] = grub_config(entries).encode()
    return files, entries


def _plan(root: Path, spec: DiskSpec) -> Table:
    if spec.size is None:
        least = FILE_SYSTEMS[spec.filesystem].least(measure(root))
        parts = partitions_of(spec, -(-least // MIB) * MIB)
        size = sum(-(-p.size // MIB) * MIB for p in parts) + 2 * MIB
    else:
        size = -(-spec.size // MIB) * MIB
        parts = partitions_of(spec, 0)
        fixed = sum(-(-p.size // MIB) * MIB for p in parts) + 2 * MIB
        if size <= fixed:
            needed = FILE_SYSTEMS[spec.filesystem].least(measure(root))
            raise too_large(spec.filesystem, needed, max(size - fixed, 0))
    return Table(spec.uuid("disk"), size, place(parts, size))


def _bios_boot(
    spec: DiskSpec, tools: Tools, disk: Path, partition: Partition | None, scratch: Path
) -> bytes:
    """Write GRUB into its partition; returns the code for the disk's first sector."""
    if partition is None:
        return b""
    config = early_config(spec.volume_id)
    core = make_core(
        lambda argv, directory: tools.run(argv, binds=[scratch]), spec.arch, scratch, config
    )
    sector = partition.start // SECTOR
    with disk.open("r+b") as f:
        f.seek(partition.start)
        f.write(place_core(core, sector, partition.size))
    image = tools.path(f"usr/lib/grub/{spec.arch.grub}/boot.img")
    try:
        return boot_code(image.read_bytes(), sector)
    except OSError as e:
        raise BuildError(f"cannot read {image}: {e.strerror}", hint="install grub-pc-bin") from e
