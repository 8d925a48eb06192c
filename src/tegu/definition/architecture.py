"""The one table of what differs between processor architectures at the level of a definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["ARCHITECTURES", "Architecture", "ArchitectureFacts", "Firmware"]

Architecture = Literal["x86-64", "arm64"]
Firmware = Literal["uefi", "bios"]


@dataclass(frozen=True, slots=True)
class ArchitectureFacts:
    """`debian` is dpkg's name; `kernel` the cloud kernel's meta package; `firmware` what boots."""

    debian: str
    kernel: str
    firmware: tuple[Firmware, ...]


ARCHITECTURES: Mapping[Architecture, ArchitectureFacts] = MappingProxyType(
    {
        "x86-64": ArchitectureFacts("amd64", "linux-image-cloud-amd64", ("uefi", "bios")),
        "arm64": ArchitectureFacts("arm64", "linux-image-cloud-arm64", ("uefi",)),
    }
)
