"""The immutable layout: a slot image of a tree, and a disk with two slots of which one is filled.

    1 esp      systemd-boot and one unified kernel image per slot
    2 root-a   erofs         3 tree-a   its dm-verity hash tree
    4 root-b   empty         5 tree-b   empty
    6 var      ext4: /var, with the changes to /etc, /home, /root and /srv

Partition types are those of the UAPI Discoverable Partitions Specification. Their GUIDs do not
follow from the root hash as it has them, because a slot's partitions stay when its content changes:
rewriting the partition table of a running machine is not atomic.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from tegu.boot import loader_files
from tegu.boot.build import build_kernel, kernel_versions
from tegu.boot.slots import FILES, SLOTS, BootName, SlotFile, SlotImage, verity_words
from tegu.boot.verity import BLOCK, hash_tree, tree_size
from tegu.errors import BuildError
from tegu.image.esp import make_esp
from tegu.image.filesystems import (
    FILE_SYSTEMS,
    Request,
    make_file_system,
    measure,
    too_large,
    write_erofs,
)
from tegu.image.partition import (
    ESP,
    GROW_FILE_SYSTEM,
    MIB,
    READ_ONLY,
    Partition,
    Table,
    place,
    write_table,
)
from tegu.image.programs import Tools
from tegu.image.secure_boot import sign_program
from tegu.image.sparse import copy_range
from tegu.image.spec import DiskSpec, kernel_cmdline

__all__ = ["build_immutable", "make_slot", "slot_partitions"]

_VAR = UUID("4d21b016-b534-45c2-a9fb-5c16e091fd2d")
_ROOM = 256 * MIB  # what is free in /var of a minimal disk, at least


def slot_partitions(spec: DiskSpec, var_size: int) -> list[Partition]:
    """Return the partitions of the layout; /var is last, so that it can grow."""
    places = spec.places
    found = [Partition("esp", ESP, spec.esp_partuuid, spec.esp_size)]
    for slot, (root, tree) in zip(SLOTS, places.slots, strict=True):
        found.append(
            Partition(
                f"root-{slot}", UUID(spec.arch.root_type), UUID(root), spec.slot_size, READ_ONLY
            )
        )
        found.append(
            Partition(
                f"tree-{slot}",
                UUID(spec.arch.verity_type),
                UUID(tree),
                tree_size(spec.slot_size),
                READ_ONLY,
            )
        )
    found.append(Partition("var", _VAR, UUID(places.data), var_size, GROW_FILE_SYSTEM))
    return found


def make_slot(
    root: Path, spec: DiskSpec, tools: Tools, out: Path, packages: Mapping[str, str]
) -> Path:
    """Make the slot image `out` (a directory) of the complete tree `root`; returns it.

    The same tree and spec give the same bytes. Raises BuildError when the tree has no kernel or
    does not fit a slot.
    """
    versions = kernel_versions(root) if spec.kernel_version is None else [spec.kernel_version]
    if not versions:
        raise BuildError("the tree has no kernel, so no slot can boot", hint="set kernel.package")
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made = scratch / "made"
        made.mkdir()
        image = made / FILES["root"]
        what = f"{spec.version} {spec.timestamp}"
        request = Request(
            root=root,
            disk=image,
            offset=0,
            size=spec.slot_size,
            label="root",
            uuid=spec.uuid(f"root file system {what}"),
            seed=lambda purpose: spec.uuid(f"root file system {what} {purpose}"),
            timestamp=spec.timestamp,
            scratch=scratch,
        )
        write_erofs(request, tools).rename(image)
        size = -(-image.stat().st_size // BLOCK) * BLOCK
        os.truncate(image, size)
        salt = hmac.digest(bytes.fromhex(spec.seed), f"verity {what}".encode(), "sha256")[:16]
        with image.open("rb") as data:
            verity, tree = hash_tree(data, size, salt)
        (made / FILES["tree"]).write_bytes(tree)
        boot = build_kernel(
            root,
            versions[0],
            arch=spec.arch,
            stub=tools.path(spec.arch.stub),
            busybox=tools.path("usr/bin/busybox"),
            cmdline=" ".join([*verity_words(verity), kernel_cmdline(spec)]),
            initrd=spec.initrd,
            filesystem=spec.filesystem,
            modules=spec.modules,
            timestamp=spec.timestamp,
            verity=tools.path("."),
        )
        if spec.secure_boot is not None:
            boot = sign_program(boot, spec.secure_boot, tools, scratch, spec.timestamp)
        (made / FILES["boot"]).write_bytes(boot)
        described = SlotImage(
            name=spec.name,
            version=spec.version,
            architecture=spec.architecture,
            created=spec.timestamp,
            verity=verity,
            packages=dict(packages),
            root=_described(image),
            tree=_described(made / FILES["tree"]),
            boot=_described(made / FILES["boot"]),
        )
        (made / "slot.json").write_text(described.dump())
        made.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def build_immutable(root: Path, slot: Path, spec: DiskSpec, tools: Tools, out: Path) -> Table:
    """Build the raw image `out`: slot a has the slot image `slot`, /var what the tree has there.

    `out` appears only when it is whole. Raises BuildError when it does not fit the disk, saying
    both sizes, or this machine's disk is full.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        table = _plan(root, spec)
        by_label = {p.label: p for p in table.partitions}
        disk = scratch / "disk.raw"
        with disk.open("wb") as f:
            os.truncate(f.fileno(), table.size)
        var = by_label["var"]
        request = Request(
            root=root / "var",
            disk=disk,
            offset=var.start,
            size=var.size,
            label="var",
            uuid=spec.uuid("var file system"),
            seed=lambda purpose: spec.uuid(f"var file system {purpose}"),
            timestamp=spec.timestamp,
            scratch=scratch,
        )
        make_file_system("ext4", request, tools)
        for label, key in (("root-a", "root"), ("tree-a", "tree")):
            _copy(slot / FILES[key], disk, by_label[label])
        files = {
            BootName(spec.name, 1, spec.version).path: (slot / FILES["boot"]).read_bytes(),
            **_loader(spec, tools, scratch),
        }
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
        with disk.open("r+b") as f:
            write_table(f, table)
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
    return table


def _loader(spec: DiskSpec, tools: Tools, scratch: Path) -> dict[str, bytes]:
    files = loader_files(spec.arch, tools.path("."))
    if spec.secure_boot is not None:
        for name in (spec.arch.removable, spec.arch.installed_loader):
            files[name] = sign_program(
                files[name], spec.secure_boot, tools, scratch, spec.timestamp
            )
    return files


def _plan(root: Path, spec: DiskSpec) -> Table:
    needed = FILE_SYSTEMS["ext4"].least(measure(root / "var"))
    needed = -(-needed // MIB) * MIB
    fixed = sum(-(-p.size // MIB) * MIB for p in slot_partitions(spec, 0)) + 2 * MIB
    size = fixed + needed + _ROOM if spec.size is None else -(-spec.size // MIB) * MIB
    if size < fixed + needed:
        raise too_large("ext4", needed, max(size - fixed, 0))
    return Table(spec.uuid("disk"), size, place(slot_partitions(spec, 0), size))


def _described(path: Path) -> SlotFile:
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return SlotFile(path.name, path.stat().st_size, digest)


def _copy(source: Path, disk: Path, partition: Partition) -> None:
    size = source.stat().st_size
    if size > partition.size:
        raise too_large("erofs", size, partition.size)
    with source.open("rb") as a, disk.open("r+b") as b:
        copy_range(a.fileno(), b.fileno(), 0, size, partition.start)
