"""Tegu's server image, taken apart as its boot loader would: disk, kernel, initrd, command line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from bench.boot.guest import BootImage
from bench.common import BenchError

from tegu.boot.uki import section_data
from tegu.definition.shipped import shipped_definition
from tegu.image import build_definition
from tegu.process import require, run

__all__ = ["build"]

log = logging.getLogger(__name__)

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
SECTOR = 512


def build(folder: Path, profile: str = "server", definition: Path | None = None) -> BootImage:
    """Build the image of Tegu Linux's `profile` and lay its parts into `folder`."""
    source = definition or shipped_definition()
    log.info("building %s, profile %s", source, profile)
    built = build_definition(source, profile=profile)
    disk = folder / "tegu.raw"
    run(["qemu-img", "convert", "-O", "raw", built.path, disk], timeout=600)
    uki = _uki(disk, folder)
    kernel = _part(uki, ".linux", folder / "tegu.linux")
    initrd = _part(uki, ".initrd", folder / "tegu.initrd")
    cmdline = section_data(uki, ".cmdline")
    if kernel is None or cmdline is None:
        raise BenchError(f"{built.path} holds no kernel that can be taken out")
    return BootImage(
        name=f"tegu {profile}",
        disk=disk,
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline.rstrip(b"\0").decode().strip(),
        user=built.definition.cloud.default_user,
        qcow2=built.path.stat().st_size / 2**20,
        about=f"Tegu Linux {built.definition.system.version}, profile {profile}",
    )


def _uki(disk: Path, folder: Path) -> bytes:
    """Return the newest unified kernel image of the ESP (UAPI.2: EFI/Linux/*.efi)."""
    table = json.loads(run(["sfdisk", "--json", disk]).stdout)["partitiontable"]["partitions"]
    starts = [p["start"] for p in table if p["type"].upper() == ESP]
    if not starts:
        raise BenchError(f"{disk} has no EFI system partition")
    mcopy = require("mcopy", package="mtools")
    into = folder / "uki"
    into.mkdir()
    run([mcopy, "-i", f"{disk}@@{starts[0] * SECTOR}", "::EFI/Linux/*.efi", into])
    found = sorted(into.glob("*.efi"))
    if not found:
        raise BenchError(f"{disk} has no kernel in EFI/Linux")
    return found[-1].read_bytes()


def _part(uki: bytes, name: str, path: Path) -> Path | None:
    data = section_data(uki, name)
    if data is None:
        return None
    path.write_bytes(data)
    return path
