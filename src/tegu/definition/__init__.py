"""What an operating system is: `tegu.toml` as typed data, with errors that point at the line.

`load` reads a definition with all that it includes; `section_digests` says what of it, and of the
files it names, a build depends on; `to_toml` writes it out again in full.
"""

from __future__ import annotations

from tegu.definition.architecture import ARCHITECTURES, Architecture, ArchitectureFacts, Firmware
from tegu.definition.digest import digest, section_digests
from tegu.definition.emit import to_json, to_toml
from tegu.definition.identity import os_release
from tegu.definition.loader import Examined, examine, examine_all, load
from tegu.definition.models import Definition, File, Table, User
from tegu.definition.overlay import OverlayEntry, overlay_entries
from tegu.definition.shipped import shipped_definition, shipped_directory

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureFacts",
    "Definition",
    "Examined",
    "File",
    "Firmware",
    "OverlayEntry",
    "Table",
    "User",
    "digest",
    "examine",
    "examine_all",
    "load",
    "os_release",
    "overlay_entries",
    "section_digests",
    "shipped_definition",
    "shipped_directory",
    "to_json",
    "to_toml",
]
