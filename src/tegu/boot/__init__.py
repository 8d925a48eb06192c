"""What a machine boots from: the initrd, unified kernel images, boot loader files.

Used on both sides: by the works when an image is made, and inside a machine when a kernel comes or
goes. So it needs nothing but Python, and takes zstandard when it is there.
"""

from tegu.boot.arch import ARCHES, Arch, arch_of
from tegu.boot.cpio import Archive
from tegu.boot.initrd import build_initrd, compress, load_script, static_program
from tegu.boot.loader import (
    GRUB_CONFIG,
    Entry,
    entry_of,
    grub_config,
    kernel_path,
    loader_files,
    newest_first,
)
from tegu.boot.modules import ModuleTree
from tegu.boot.uki import build_uki

__all__ = [
    "ARCHES",
    "GRUB_CONFIG",
    "Arch",
    "Archive",
    "Entry",
    "ModuleTree",
    "arch_of",
    "build_initrd",
    "build_uki",
    "compress",
    "entry_of",
    "grub_config",
    "kernel_path",
    "load_script",
    "loader_files",
    "newest_first",
    "static_program",
]
