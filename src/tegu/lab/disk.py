"""Disk images as a machine meets them: what format, is it whole, and a private layer on top.

`qemu-img` (qemu-img(1)) is the reference for every format, so it is asked and nothing is parsed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tegu.errors import MachineError, UsageError
from tegu.process import CommandError, require, run

__all__ = ["Disk", "inspect", "make_overlay", "parse_size"]

_FORMATS: Final = frozenset({"raw", "qcow2", "vpc", "vhdx", "vmdk", "vdi"})
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk image: `size` is what the machine sees, in bytes; `backing` the layer below."""

    path: Path
    format: str
    size: int
    backing: Path | None = None


def inspect(path: Path, *, partitioned: bool = True) -> Disk:
    """Return what `path` is, having looked that it can be a disk.

    `partitioned` asks for a partition table on a raw image, so that a stray file is not booted for
    minutes. Raises UsageError for what is not a disk, MachineError for a damaged one.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a disk image")
    try:
        with path.open("rb") as f:
            head = f.read(512)
    except OSError as e:
        raise UsageError(f"cannot read the image {path}: {e.strerror}") from e
    tool = require("qemu-img", package="qemu-utils")
    said = run([tool, "info", "--output=json", path], check=False, timeout=60)
    if said.returncode != 0:
        raise MachineError(f"{path} is damaged: {_reason(said.stderr, path)}")
    body = json.loads(said.stdout)
    backing = body.get("full-backing-filename")
    disk = Disk(path, body["format"], int(body["virtual-size"]), Path(backing) if backing else None)
    if disk.format not in _FORMATS:
        raise UsageError(f"{path} is in the format {disk.format}, which no machine boots from")
    if disk.format == "raw" and partitioned and head[510:512] != b"\x55\xaa":
        raise UsageError(
            f"{path} is not a disk image: it has no partition table",
            hint="disk images are raw (GPT or MBR), qcow2 or VHD files, as `tegu build` makes them",
        )
    if disk.format == "qcow2":
        _check(tool, path)
    return disk


def _check(tool: str, path: Path) -> None:
    """Refuse a qcow2 whose tables are damaged; leaked clusters (exit code 3) do no harm."""
    done = run([tool, "check", "-q", "-f", "qcow2", path], check=False, timeout=300)
    if done.returncode in (1, 2):
        raise MachineError(
            f"{path} is damaged: {_reason(done.stderr + done.stdout, path)}",
            hint="build or fetch it again; `qemu-img check` says more",
        )


def _reason(text: str, path: Path) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else "no reason given"
    return first.removeprefix("qemu-img: ").replace(f"Could not open '{path}': ", "")


def make_overlay(base: Disk, path: Path, *, size: int | None = None) -> Disk:
    """Make a qcow2 at `path` that takes all writes while `base` stays as it is.

    `size` (bytes) makes the machine's disk larger than the image; a smaller one is a UsageError.
    """
    if size is not None and size < base.size:
        raise UsageError(
            f"{base.path} is a disk of {base.size} bytes and cannot be shrunk to {size}"
        )
    target = size or base.size
    tool = require("qemu-img", package="qemu-utils")
    backing = ["-b", str(base.path.resolve()), "-F", base.format]
    try:
        run([tool, "create", "-q", "-f", "qcow2", *backing, path, str(target)], timeout=60)
    except CommandError as e:
        raise MachineError(f"cannot make a layer over {base.path}: {e.message}") from e
    return Disk(path, "qcow2", target, base.path.resolve())


def parse_size(text: str) -> int:
    """Return the bytes in `text`, such as "768M" or "4G" (binary units; a bare number is bytes)."""
    match = re.fullmatch(r"([1-9][0-9]{0,15})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"not a size: {text!r}", hint="sizes look like 768M or 4G")
    return int(match.group(1)) * _UNITS[match.group(2).upper()]
