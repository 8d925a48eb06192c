"""A finished tree becomes images: every format that the definition asks for, with manifests."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tegu.definition import Definition
from tegu.image.disk import build_disk
from tegu.image.formats import DISK_FORMATS, write_format
from tegu.image.immutable import build_immutable, make_slot
from tegu.image.programs import Tools
from tegu.image.spec import DiskSpec, tree_files
from tegu.packages import Lock
from tegu.store import Store

__all__ = ["KIND", "Assembled", "ImageFile", "assemble", "generated_files", "open_assembled"]

KIND = "images-1"


@dataclass(frozen=True)
class ImageFile:
    """One image: `name` is its file (or directory), sizes in bytes.

    `sha256` is the file's, or for sparse formats that of its data (`tegu.image.formats`); that of
    the image manifest for an OCI layout; empty for a directory.
    `mtime_ns` is how it was left: a file written to since is no longer this image.
    """

    format: str
    name: str
    size: int
    virtual_size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Assembled:
    """The images of one tree; `packages` maps names to versions."""

    key: str
    system: str
    version: str
    architecture: str
    tree_digest: str
    lock_digest: str
    timestamp: int
    created: float
    images: tuple[ImageFile, ...]
    packages: Mapping[str, str]

    def directory(self, store: Store) -> Path:
        return store.root / KIND / self.key

    def files(self, store: Store) -> list[Path]:
        """Return the images and their JSON manifests."""
        directory = self.directory(store) / "files"
        return sorted(directory.iterdir())


def open_assembled(store: Store, key: str) -> Assembled | None:
    """Return the images `key` if all are in the store and none was written to."""
    directory = store.tree(KIND, key)
    if directory is None:
        return None
    try:
        raw = json.loads((directory / "image.json").read_text())
        images = tuple(ImageFile(**i) for i in raw.pop("images"))
        found = Assembled(**raw, images=images)
        for image in images:
            info = (directory / "files" / image.name).stat()
            changed = (info.st_mtime_ns, info.st_size) != (image.mtime_ns, image.size)
            if changed and (directory / "files" / image.name).is_file():
                return None
    except (ValueError, TypeError, OSError):
        return None
    return found


def save_assembled(directory: Path, assembled: Assembled) -> None:
    (directory / "image.json").write_text(json.dumps(asdict(assembled), sort_keys=True))


def generated_files(definition: Definition, lock: Lock) -> dict[str, str]:
    """Return files of the tree that follow from the image's layout, by relative path."""
    booted = DISK_FORMATS | {"slot"}
    if definition.kernel.package is None or not booted & set(definition.image.formats):
        return {}
    return tree_files(disk_spec(definition, lock))


def disk_spec(definition: Definition, lock: Lock) -> DiskSpec:
    """Return the disk that a definition asks for; UUIDs follow from name, version, architecture."""
    system, image = definition.system, definition.image
    # The next version's slot goes to a disk that this one made: its partitions have the same GUIDs.
    version = "slots" if image.layout == "immutable" else system.version
    seed = hashlib.sha256(f"{system.name} {version} {lock.architecture}".encode())
    return DiskSpec(
        name=system.name,
        version=system.version,
        architecture=lock.architecture,
        size=None if image.size == "minimal" else parse_size(image.size),
        filesystem=image.filesystem,
        firmware=tuple(image.firmware),
        esp_size=parse_size(image.esp_size),
        seed=seed.hexdigest(),
        timestamp=lock.timestamp,
        cmdline=tuple(definition.kernel.cmdline),
        initrd=definition.kernel.initrd,
        modules=tuple(definition.kernel.modules),
        title=system.pretty_name,
        layout=image.layout,
        secure_boot=None
        if image.secure_boot_key is None or image.secure_boot_certificate is None
        else (image.secure_boot_key, image.secure_boot_certificate),
        slot_size=parse_size(image.slot_size) if image.layout == "immutable" else 0,
    )


def parse_size(text: str) -> int:
    """Return the bytes of a size of the definition, such as 20G."""
    units = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return int(text[:-1]) * units[text[-1]]


def assemble(
    store: Store,
    key: str,
    root: Path,
    definition: Definition,
    lock: Lock,
    tools: Tools,
    scratch: Path,
    *,
    tree_digest: str,
) -> Assembled:
    """Make every format of `definition.image.formats` of the finished tree at `root`."""
    spec = disk_spec(definition, lock)
    digest = lock.digest()
    with store.new_tree(KIND, key) as directory:
        files = directory / "files"
        files.mkdir()
        raw: Path | None = None
        slot: Path | None = None
        if spec.layout == "immutable":
            slot = make_slot(
                root, spec, tools, scratch / "slot", {p.name: p.version for p in lock.system}
            )
        if any(name in DISK_FORMATS for name in definition.image.formats):
            raw = scratch / "disk.raw"
            if slot is not None:
                build_immutable(root, slot, spec, tools, raw)
            else:
                build_disk(root, spec, tools, raw)
        images = []
        for name in definition.image.formats:
            made = write_format(
                name,
                root=root,
                raw=raw,
                slot=slot,
                directory=files,
                spec=spec,
                tools=tools,
                lock=digest,
                packages=len(lock.system),
            )
            path = files / made.file
            if path.is_file():
                path.chmod(0o444)
            images.append(
                ImageFile(
                    name,
                    made.file,
                    made.file_size,
                    made.virtual_size,
                    made.sha256 or made.content_sha256,
                    path.stat().st_mtime_ns,
                )
            )
        assembled = Assembled(
            key,
            spec.name,
            spec.version,
            spec.architecture,
            tree_digest,
            digest,
            lock.timestamp,
            time.time(),
            tuple(images),
            {p.name: p.version for p in lock.system},
        )
        save_assembled(directory, assembled)
    return assembled
