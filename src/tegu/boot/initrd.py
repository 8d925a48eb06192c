"""The initrd: busybox, the drivers of the root disk, one careful script, and nothing else.

It is about 1 MB, where a general one is ten to a hundred times that: a cloud machine's disk is one
of a handful of devices, and finding out which needs no udev. The archive is always the same for the
same input.
"""

from __future__ import annotations

import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from tegu.boot.cpio import Archive
from tegu.boot.modules import Module, ModuleTree, canonical
from tegu.boot.programs import add_program
from tegu.errors import BuildError
from tegu.process import run

__all__ = ["BUSES", "build_initrd", "compress", "load_script", "static_program"]

BUSES = ("virtio", "pci", "scsi", "vmbus", "xen")
"""Buses whose devices the initrd looks at; Hyper-V's own bus is found through ACPI."""

_SLOW = frozenset({"ahci", "ata_piix"})
_LEVEL = 9
# Before /proc is mounted busybox's shell finds its own commands by path only.
_APPLET_LINKS = ("insmod", "mkdir", "mount", "sh", "switch_root", "usleep")
_DIRECTORIES = ("dev", "proc", "sys", "run", "sysroot", "lib/tegu/modules")


def build_initrd(
    root: Path,
    kernel_version: str,
    modules: Iterable[str],
    busybox: Path,
    timestamp: int,
    *,
    optional: Iterable[str] = (),
    filesystems: Iterable[str] = (),
    verity: Path | None = None,
) -> bytes:
    """Return a compressed initrd for kernel `kernel_version` of the tree `root`.

    `modules` must exist (or be built in), `optional` and `filesystems` are taken when the kernel
    has them as modules; all come with what they depend on. `busybox` is a static busybox. A module
    that devices ask for is loaded when such a device is there, a file system when `rootfstype=`
    names it, any other at once. With `verity`, a tree that has dmsetup(8), it can open a root that
    dm-verity checks. Raises BuildError for what is missing or damaged.
    """
    tree = ModuleTree(root, kernel_version)
    wanted, systems = list(modules), [fs for fs in filesystems if tree.has(fs)]
    closure = tree.closure([*wanted, *systems], optional=optional)
    archive = Archive(timestamp)
    for directory in _DIRECTORIES:
        archive.directory(directory)
    archive.file("bin/busybox", static_program(busybox), 0o755)
    for link in _APPLET_LINKS:
        archive.symlink(f"bin/{link}", "busybox")
    archive.file("init", files("tegu.boot").joinpath("init.sh").read_bytes(), 0o755)
    if verity is not None:
        add_program(archive, verity, "dmsetup", package="dmsetup")
    archive.file("lib/tegu/load", load_script(tree, closure, wanted, systems).encode())
    for module in closure:
        archive.file(f"lib/tegu/modules/{module.name}.ko", tree.read(module))
    return compress(archive.pack())


def load_script(
    tree: ModuleTree, closure: Sequence[Module], wanted: Iterable[str], systems: Iterable[str]
) -> str:
    """Return /lib/tegu/load: the shell functions by which the initrd's init loads modules."""
    by_name = {m.name: m for m in closure}
    aliases = tree.device_patterns(by_name, BUSES)
    patterns: dict[str, list[str]] = {}
    for pattern, module in aliases:
        patterns.setdefault(module, []).append(pattern)
    asked = {canonical(name) for name in wanted} & set(by_name)
    always = sorted(asked - set(patterns) - {canonical(fs) for fs in systems})
    quick = [m for m in patterns if m not in _SLOW]
    slow = [m for m in patterns if m in _SLOW]
    acpi = any(p.startswith("acpi") for p, _ in aliases)
    lines = files("tegu.boot").joinpath("load.sh").read_text().splitlines()
    lines += [f"acpi_devices='{'/sys/bus/acpi/devices/*/modalias' if acpi else ''}'"]
    lines += ["load_always() {", "\t:", *(f"\t{_load(by_name, m)}" for m in always), "}"]
    for function, names in (("driver_for", quick), ("slow_driver_for", slow)):
        lines += [f"{function}() {{", "\t:"]
        for name in names:
            choices = " | ".join(_shell_pattern(p) for p in patterns[name])
            lines.append(f"\tcase $1 in {choices}) {_load(by_name, name)} ;; esac")
        lines.append("}")
    lines += ["file_system() {", "\t:"]
    for name in systems:
        if canonical(name) in by_name:
            lines.append(f'\t[ "$1" = {name} ] && {{ {_load(by_name, canonical(name))}; }}')
    lines += ["\treturn 0", "}"]
    return "\n".join(lines) + "\n"


def _load(by_name: dict[str, Module], name: str) -> str:
    """Return the commands that load a module after all that it needs."""
    needed: dict[str, None] = {}

    def visit(current: str) -> None:
        for need in by_name[current].needs:
            if need not in needed and need != name:
                visit(need)
                needed[need] = None

    visit(name)
    return "; ".join(f"load {m}" for m in (*needed, name))


def _shell_pattern(pattern: str) -> str:
    """Quote what a shell would take for more than a pattern; `*`, `?` and `[]` mean the same."""
    return re.sub(r"[^A-Za-z0-9:_,.*?\[\]+=@%^/-]", lambda m: "\\" + m[0], pattern)


def static_program(busybox: Path) -> bytes:
    """Return the program at `busybox`; refuses one with an interpreter (elf(5): PT_INTERP is 3)."""
    hint = "install busybox-static"
    try:
        data = busybox.read_bytes()
    except OSError as e:
        raise BuildError(f"cannot read busybox at {busybox}: {e.strerror}", hint=hint) from e
    if data[:5] not in (b"\x7fELF\x01", b"\x7fELF\x02"):
        raise BuildError(f"{busybox} is not a program", hint=hint)
    wide = data[4] == 2
    try:
        (offset,) = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)
        size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
        kinds = [struct.unpack_from("<I", data, offset + i * size)[0] for i in range(count)]
    except struct.error as e:
        raise BuildError(f"{busybox} is damaged: {e}", hint=hint) from e
    if 3 in kinds:
        raise BuildError(f"{busybox} is not a static program", hint=hint)
    return data


def compress(data: bytes) -> bytes:
    """Compress an initrd: with zstd, which the kernel unpacks fastest, else with gzip.

    Uses the module `zstandard` or the program zstd, whichever is there; both give a frame without
    a date. gzip is for a machine that has neither.
    """
    try:
        import zstandard
    except ModuleNotFoundError:
        pass
    else:
        packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        return packer.compress(data)
    if shutil.which("zstd") is not None:
        return _by_program(data)
    packer_gz = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer_gz.compress(data) + packer_gz.flush()


def _by_program(data: bytes) -> bytes:
    import tempfile

    with tempfile.TemporaryFile() as out:
        run(["zstd", "-q", f"-{_LEVEL}", "-c"], stdin=data, stdout=out)
        out.seek(0)
        return out.read()
