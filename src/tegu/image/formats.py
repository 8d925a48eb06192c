"""The forms in which a system is handed out, each with a JSON manifest beside it.

Disks (raw, qcow2, vhd, vhd-fixed) are made of one raw image; directory, tar and oci of the tree;
slot is what machines of the immutable layout are upgraded with.
All but `directory` are the same bytes for the same input. Everything is made under another name and
renamed when it is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tegu.errors import BuildError, UnsupportedError
from tegu.files import write_atomic
from tegu.image.archive import copy_tree, file_sha256, write_oci, write_tar
from tegu.image.partition import MIB
from tegu.image.programs import Tools, tool_environment
from tegu.image.sparse import copy_range, data_extents
from tegu.image.spec import DiskSpec
from tegu.image.vhd import pin_footer

__all__ = [
    "DISK_FORMATS",
    "FORMATS",
    "TREE_FORMATS",
    "ImageManifest",
    "content_sha256",
    "image_name",
]
__all__ += ["write_format"]

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """What the JSON beside an image says: sizes in bytes, `created` the build's timestamp.

    `sha256` is that of the file. Sparse formats (raw, vhd-fixed) are mostly holes and have
    `content_sha256` in its place (see that function). An oci layout has the digest of its image
    manifest, a slot image that of its slot.json, a directory has none.
    """

    name: str
    format: str
    file: str
    virtual_size: int
    file_size: int
    sha256: str
    content_sha256: str
    architecture: str
    version: str
    lock: str
    packages: int
    created: str


@dataclass(frozen=True, slots=True)
class _Job:
    root: Path
    raw: Path | None
    slot: Path | None
    out: Path
    spec: DiskSpec
    tools: Tools
    lock: str

    @property
    def disk(self) -> Path:
        if self.raw is None:
            raise BuildError("a disk format needs a raw image")
        return self.raw


def _convert(job: _Job, kind: str, options: str, *extra: str) -> None:
    argv: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", kind, "-o", options, *extra]
    job.tools.run(
        [*argv, job.disk, job.out],
        binds=[job.disk.parent, job.out.parent],
        env=tool_environment(job.spec.timestamp),
    )


def _raw(job: _Job) -> None:
    copy_sparse(job.disk, job.out)


def _qcow2(job: _Job) -> None:
    # Compressed clusters are written in the order of the disk unless -W is given.
    _convert(job, "qcow2", "compression_type=zstd", "-c")


def _vhd(job: _Job, kind: str) -> None:
    size = job.disk.stat().st_size
    if size % MIB:
        raise BuildError(f"a VHD must be whole MiB, and the disk has {size} bytes")
    # Without force_size qemu-img rounds up to whole cylinders, which clouds refuse.
    _convert(job, "vpc", f"subformat={kind},force_size=on")
    footer = pin_footer(job.out, job.spec.uuid("vhd"), job.spec.timestamp)
    if footer.size != size:
        raise BuildError(f"qemu-img made a VHD of {footer.size} bytes out of a disk of {size}")


def _vhd_dynamic(job: _Job) -> None:
    _vhd(job, "dynamic")


def _vhd_fixed(job: _Job) -> None:
    _vhd(job, "fixed")


def _tar(job: _Job) -> None:
    write_tar(job.root, job.out, timestamp=job.spec.timestamp, tools=job.tools)


def _oci(job: _Job) -> None:
    spec = job.spec
    job.out.mkdir()
    labels = {
        "org.opencontainers.image.title": spec.title or spec.name,
        "org.opencontainers.image.version": spec.version,
        "org.opencontainers.image.revision": job.lock,
    }
    write_oci(
        job.root,
        job.out,
        architecture=spec.arch.oci,
        tag=f"{spec.name}:{spec.version}",
        labels=labels,
        timestamp=spec.timestamp,
        tools=job.tools,
    )


def _directory(job: _Job) -> None:
    job.out.mkdir()
    copy_tree(job.root, job.out, timestamp=job.spec.timestamp, tools=job.tools)


def _slot(job: _Job) -> None:
    if job.slot is None:
        raise BuildError("a slot image is of the immutable layout")
    job.out.mkdir()
    for path in sorted(job.slot.iterdir()):
        copy_sparse(path, job.out / path.name)


@dataclass(frozen=True, slots=True)
class _Format:
    suffix: str
    make: Callable[[_Job], None]
    disk: bool = False
    sparse: bool = False


_FORMATS: Mapping[str, _Format] = {
    "raw": _Format(".raw", _raw, disk=True, sparse=True),
    "qcow2": _Format(".qcow2", _qcow2, disk=True),
    "vhd": _Format(".vhd", _vhd_dynamic, disk=True),
    "vhd-fixed": _Format("_fixed.vhd", _vhd_fixed, disk=True, sparse=True),
    "tar": _Format(".tar", _tar),
    "oci": _Format(".oci", _oci),
    "directory": _Format(".tree", _directory),
    "slot": _Format(".slot", _slot),
}
FORMATS = tuple(_FORMATS)
DISK_FORMATS = frozenset(n for n, f in _FORMATS.items() if f.disk)
TREE_FORMATS = frozenset(FORMATS) - DISK_FORMATS


def image_name(spec: DiskSpec, format_name: str) -> str:
    """Return a file name such as `tegu_26.11_x64_20G_20261120.qcow2`.

    Formats made of the tree have no size in their name.
    """
    day = datetime.fromtimestamp(spec.timestamp, UTC).strftime("%Y%m%d")
    kind = _FORMATS[format_name]
    size = [] if not kind.disk else ["minimal" if spec.size is None else _size_word(spec.size)]
    return "_".join([spec.name, spec.version, spec.arch.tag, *size, day]) + kind.suffix


def _size_word(size: int) -> str:
    if size % (1 << 30) == 0:
        return f"{size >> 30}G"
    return f"{-(-size // MIB)}M"


def write_format(
    format_name: str,
    *,
    root: Path,
    raw: Path | None,
    slot: Path | None = None,
    directory: Path,
    spec: DiskSpec,
    tools: Tools,
    lock: str,
    packages: int,
) -> ImageManifest:
    """Write one format and its manifest into `directory`; returns the manifest.

    `raw` is the disk image for the disk formats, `slot` the slot image of the immutable layout,
    `lock` the lock's digest, `packages` their number.
    Raises BuildError when it cannot be made or the disk is full, UnsupportedError for a format that
    is not known.
    """
    kind = _FORMATS.get(format_name)
    if kind is None:
        raise UnsupportedError(f"the format {format_name} (known: {', '.join(FORMATS)})")
    name = image_name(spec, format_name)
    directory.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=directory))
    try:
        made = scratch / name
        job = _Job(root, raw, slot, made, spec, tools, lock)
        kind.make(job)
        manifest = _describe(format_name, kind, job, packages)
        target = directory / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        made.rename(target)
        text = json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n"
        write_atomic(directory / f"{name}.json", text)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise BuildError(f"no space left in {directory}", hint="free some space") from e
        raise BuildError(f"cannot write {name}: {e.strerror}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _describe(format_name: str, kind: _Format, job: _Job, packages: int) -> ImageManifest:
    made, raw, spec = job.out, job.raw, job.spec
    sha256 = content = ""
    if made.is_dir():
        size = sum(p.lstat().st_size for p in made.rglob("*") if p.is_file() and not p.is_symlink())
        if format_name == "oci":
            index = json.loads((made / "index.json").read_bytes())
            sha256 = index["manifests"][0]["digest"].removeprefix("sha256:")
        elif format_name == "slot":
            sha256 = file_sha256(made / "slot.json")
    else:
        size = made.stat().st_size
        if kind.sparse:
            content = content_sha256(made)
        else:
            sha256 = file_sha256(made)
    virtual = raw.stat().st_size if kind.disk and raw is not None else size
    return ImageManifest(
        name=spec.name,
        format=format_name,
        file=made.name,
        virtual_size=virtual,
        file_size=size,
        sha256=sha256,
        content_sha256=content,
        architecture=spec.architecture,
        version=spec.version,
        lock=job.lock,
        packages=packages,
        created=datetime.fromtimestamp(spec.timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _data_blocks(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is not a hole, widened to whole blocks, none of them twice."""
    at = 0
    for first, last in data_extents(fd, size):
        start, end = max(first // _BLOCK * _BLOCK, at), min(-(-last // _BLOCK) * _BLOCK, size)
        if start < end:
            yield start, end
        at = max(at, end)


def content_sha256(path: Path) -> str:
    """Return a SHA-256 (hex) of a sparse file that does not read its holes.

    It is over the file's size and, for each block of 64 KiB that is not all zeros, its offset (both
    eight bytes, little-endian) and its bytes. Where the holes are makes no difference.
    """
    digest = hashlib.sha256()
    zeros = bytes(_BLOCK)
    with path.open("rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        for start, end in _data_blocks(f.fileno(), size):
            for offset in range(start, end, _BLOCK):
                block = os.pread(f.fileno(), min(_BLOCK, end - offset), offset)
                if block != zeros[: len(block)]:
                    digest.update(offset.to_bytes(8, "little"))
                    digest.update(block)
    return digest.hexdigest()


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a sparse file: by another name for it where that works, else its data only.

    A hard link is right here because neither name is ever written to again.
    """
    try:
        os.link(source, target)
        return
    except OSError as e:
        if e.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
    with source.open("rb") as a, target.open("xb") as b:
        size = os.fstat(a.fileno()).st_size
        os.ftruncate(b.fileno(), size)
        for start, end in data_extents(a.fileno(), size):
            copy_range(a.fileno(), b.fileno(), start, end, start)
