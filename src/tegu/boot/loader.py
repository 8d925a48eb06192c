"""What lies on the EFI system partition: boot loader, one file per kernel, and its menus.

    EFI/BOOT/BOOTX64.EFI            systemd-boot, where firmware without boot entries looks
    EFI/systemd/systemd-bootx64.efi the same, where `bootctl update` keeps it
    EFI/Linux/NAME-VERSION.efi      one unified kernel image per kernel
    loader/loader.conf              no menu, no editor
    grub/grub.cfg                   the same kernels for legacy BIOS

Each kernel is there once. UEFI starts the unified image; GRUB reads kernel and initrd from inside
the same file, at the sectors that `grub_config` writes down. No random seed is ever baked: systemd
makes one per machine (systemd-boot-random-seed.service(8)).

systemd-boot finds unified images by itself and starts the newest (Boot Loader Specification, type
2), also with boot counting in their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tegu.boot.arch import Arch
from tegu.boot.uki import read_sections, section_data
from tegu.errors import BuildError

__all__ = [
    "GRUB_CONFIG",
    "KERNELS",
    "LOADER_CONFIG",
    "Entry",
    "entry_of",
    "grub_config",
    "kernel_path",
    "loader_files",
    "newest_first",
    "version_key",
]

LOADER_CONFIG = "loader/loader.conf"
GRUB_CONFIG = "grub/grub.cfg"
KERNELS = "EFI/Linux"
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel on the ESP: where its file is, and the byte ranges inside that GRUB loads."""

    version: str
    path: str
    title: str
    cmdline: str
    kernel: tuple[int, int]
    initrd: tuple[int, int] | None


def version_key(version: str) -> list[tuple[int, int, str]]:
    """Return a sort key that reads runs of digits as numbers: 6.9 comes before 6.12.

    `~` sorts before the end of a part, as in Debian's version numbers.
    """
    key: list[tuple[int, int, str]] = []
    for number, tilde, other in re.findall(r"(\d+)|(~)|([^\d~]+)", version):
        if number:
            key.append((2, int(number), ""))
        else:
            key.append((0, 0, "") if tilde else (3, 0, other))
    return [*key, (1, 0, "")]


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return kernel versions, newest first."""
    return sorted(versions, key=version_key, reverse=True)


def kernel_path(name: str, version: str) -> str:
    """Return where the unified image of a kernel goes on the ESP."""
    return f"{KERNELS}/{name}-{version}.efi"


def loader_files(arch: Arch, tree: Path) -> dict[str, bytes]:
    """Return systemd-boot and its configuration, by path on the ESP.

    `tree` has the package systemd-boot-efi; raises BuildError when it does not.
    """
    path = tree / arch.boot_loader
    try:
        loader = path.read_bytes()
    except OSError as e:
        raise BuildError(
            f"cannot read the boot loader {path}: {e.strerror}", hint="install systemd-boot-efi"
        ) from e
    read_sections(loader)
    config = "# Made by tegu.\ntimeout 0\neditor no\nauto-firmware no\n"
    return {
        arch.removable: loader,
        arch.installed_loader: loader,
        LOADER_CONFIG: config.encode(),
    }


def entry_of(path: str, uki: bytes) -> Entry:
    """Describe the unified image at `path` (on the ESP); raises BuildError when it is damaged."""
    sections = read_sections(uki)
    if ".linux" not in sections or ".cmdline" not in sections:
        raise BuildError(f"{path} is not a unified kernel image")

    def text(name: str) -> str:
        return (section_data(uki, name) or b"").rstrip(b"\0\n").decode(errors="replace")

    linux, initrd = sections[".linux"], sections.get(".initrd")
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', text(".osrel"), re.MULTILINE)
    version = text(".uname") or Path(path).stem
    return Entry(
        version=version,
        path=path,
        title=f"{found[1] if found else 'Linux'} ({version})",
        cmdline=text(".cmdline").strip(),
        kernel=(linux.offset, linux.size),
        initrd=None if initrd is None else (initrd.offset, initrd.size),
    )


def grub_config(entries: Iterable[Entry], *, speed: int = 115200) -> str:
    """Return GRUB's menu: the newest kernel at once, older ones behind it.

    Kernel and initrd are read out of the unified image through a loop device with GRUB's block
    lists (`(device)START+COUNT`, in sectors). What pads the last sector is zeros, which both the
    kernel's and the initrd's format allow.
    """
    lines = [
        "# Made by tegu: rewritten whenever a kernel comes or goes.",
        "set default=0",
        "set fallback=1",
        "set timeout=0",
        "set timeout_style=hidden",
        f"if serial --unit=0 --speed={speed}; then",
        "  terminal_input console serial",
        "  terminal_output console serial",
        "fi",
    ]
    ordered = sorted(entries, key=lambda e: version_key(e.version), reverse=True)
    for entry in ordered:
        lines += [
            f"menuentry {_quote(entry.title)} {{",
            f"  loopback uki ($root)/{entry.path}",
            f"  linux (uki){_blocks(entry.kernel)} {_words(entry.cmdline)}",
        ]
        if entry.initrd is not None:
            lines.append(f"  initrd (uki){_blocks(entry.initrd)}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _blocks(extent: tuple[int, int]) -> str:
    start, size = extent
    if start % _SECTOR:
        raise BuildError("a section of the unified kernel image does not start on a sector")
    return f"{start // _SECTOR}+{-(-size // _SECTOR)}"


def _words(cmdline: str) -> str:
    return " ".join(_quote(word) for word in cmdline.split())


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
