"""UEFI firmware, found the way QEMU documents it, so that no distribution's paths are known here.

Firmware packages install JSON descriptors (QEMU's docs/interop/firmware.json); the first in file
name order that fits is the one to use, and files in /etc hide those in /usr/share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from tegu.emulator.arch import MachineFacts
from tegu.errors import UnsupportedError

__all__ = ["FIRMWARE_DIRECTORIES", "FirmwareFiles", "find_uefi"]

FIRMWARE_DIRECTORIES: Final = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))

# Secure Boot firmware refuses unsigned boot loaders, and SMM is slow under emulation.
_UNWANTED = frozenset({"requires-smm", "secure-boot", "enrolled-keys"})


@dataclass(frozen=True, slots=True)
class FirmwareFiles:
    """`code` is mapped read-only; `variables` is the template that each machine copies."""

    code: Path
    variables: Path


def find_uefi(
    facts: MachineFacts, directories: Sequence[Path] = FIRMWARE_DIRECTORIES
) -> FirmwareFiles:
    """Return the UEFI firmware for `facts`; UnsupportedError when none is installed."""
    by_name: dict[str, Path] = {}
    for directory in reversed(directories):
        if directory.is_dir():
            by_name.update({p.name: p for p in directory.iterdir() if p.suffix == ".json"})
    for name in sorted(by_name):
        files = _read(by_name[name], facts)
        if files is not None and files.code.exists() and files.variables.exists():
            return files
    raise UnsupportedError(
        f"no UEFI firmware for {facts.name} machines is installed",
        hint=f"install the package {facts.firmware_package}, or use --firmware bios"
        if facts.bios
        else f"install the package {facts.firmware_package}",
    )


def _read(path: Path, facts: MachineFacts) -> FirmwareFiles | None:
    try:
        body: Any = json.loads(path.read_bytes())
        mapping = body["mapping"]
        if "uefi" not in body["interface-types"] or mapping["device"] != "flash":
            return None
        if mapping.get("mode", "split") != "split" or _UNWANTED & set(body["features"]):
            return None
        if not any(_fits(target, facts) for target in body["targets"]):
            return None
        if mapping["executable"]["format"] != "raw":
            return None
        return FirmwareFiles(
            Path(mapping["executable"]["filename"]), Path(mapping["nvram-template"]["filename"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # an empty file in /etc hides one in /usr/share; a foreign one is not ours


def _fits(target: Any, facts: MachineFacts) -> bool:
    return bool(target["architecture"] == facts.firmware_target) and any(
        fnmatchcase(facts.firmware_board, pattern) for pattern in target["machines"]
    )
