"""Which probe works on which kernel? Each kernel starts with nothing but Python and the probes.

TEGU_KERNELS names Debian packages of kernels (linux-image-*.deb), separated by colons; the running
kernel is asked as well. A guest is an initrd: no disk, no distribution, cgroup version 2. The table
in docs/diagnosis.md is what this prints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.common import Bar, BenchError, BenchResult, machine

import tegu
from tegu.boot.cpio import Archive
from tegu.probe.matrix import asked_here
from tegu.process import run as run_program

__all__ = ["run"]

_KERNELS = "TEGU_KERNELS"
_PATIENCE = 900.0  # seconds for a guest, emulated, on a machine that does other things too
_LIBRARIES = ("libbpf.so.1", "libseccomp.so.2")
_NEEDED = ("__init__.py", "errors.py", "files.py", "process.py", "linux", "probe")
_LEFT_OUT = re.compile(r"/(test|tests|idlelib|lib2to3|tkinter|ensurepip|turtledemo|config-[^/]*)/")

Row = dict[str, Any]


def run(quick: bool) -> BenchResult:
    """Ask this kernel and those of TEGU_KERNELS; `quick` asks this one only."""
    packages = [] if quick else [Path(p) for p in os.environ.get(_KERNELS, "").split(":") if p]
    for package in packages:
        if not package.is_file():
            raise BenchError(f"{_KERNELS}: there is no {package}")
    listings = [asked_here()]
    if packages:
        initrd = _initrd()
        listings += [_asked(package, initrd) for package in packages]
    names = list(dict.fromkeys(p["name"] for listing in listings for p in listing["probes"]))
    rows: list[Row] = []
    for name in names:
        row: Row = {"probe": name}
        for listing in listings:
            found = next((p for p in listing["probes"] if p["name"] == name), None)
            row[listing["kernel"]] = (
                "not asked" if found is None
                else "works" if found["available"] else f"unsupported: {found['reason']}"
            )  # fmt: skip
        rows.append(row)
    silent = sum(value == "not asked" for row in rows for value in row.values())
    bars = [Bar.at_most("probes that neither work nor say why", silent, 0)]
    return BenchResult("kernels", machine(), rows, bars)


def _asked(package: Path, initrd: bytes) -> Row:
    """Start the kernel of a package and return what its probes say."""
    with tempfile.TemporaryDirectory(prefix="tegu-kernels-") as scratch:
        folder = Path(scratch)
        run_program(["dpkg-deb", "--extract", package, folder])
        kernel = next(iter(sorted(folder.glob("boot/vmlinuz-*"))), None)
        if kernel is None:
            raise BenchError(f"{package.name} holds no boot/vmlinuz-*")
        (folder / "initrd").write_bytes(initrd)
        serial = folder / "serial"
        run_program(
            [
                *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
                *("-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max,-cx16"),
                *("-m", "1024", "-smp", "1", "-no-reboot", "-serial", f"file:{serial}"),
                *("-kernel", kernel, "-initrd", folder / "initrd"),
                *("-append", "console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests"),
            ],
            timeout=_PATIENCE,
        )
        said = serial.read_text(errors="replace")
    match = re.search(r"<listing>(.*?)</listing>", said, re.DOTALL)
    if match is None:
        raise BenchError(f"the guest of {package.name} said nothing; its last words: {said[-300:]}")
    listing: Row = json.loads(match[1])
    if "trouble" in listing:
        raise BenchError(f"the guest of {package.name}: {listing['trouble'].strip()[-400:]}")
    return listing


def _initrd() -> bytes:
    """Return an initrd of the system's Python, its library, libbpf and the probes."""
    made = Archive(0)
    init = Path(__file__).with_name("guest") / "init.py"
    made.file("init", init.read_bytes(), 0o755)
    for name in ("dev", "proc", "sys", "tmp"):
        made.directory(name)
    python = Path(sys.executable).resolve()
    made.file("usr/bin/python3", python.read_bytes(), 0o755)
    library = Path(sysconfig.get_path("stdlib"))
    binaries = [python, *(_library(name) for name in _LIBRARIES)]
    for path in sorted(library.rglob("*")):
        if path.is_file() and not _LEFT_OUT.search(str(path)) and path.suffix in (".py", ".so"):
            made.file(str(path).lstrip("/"), path.read_bytes())
            if path.suffix == ".so" and "_ctypes" in path.name:
                binaries.append(path)
    for name in _linked(binaries):
        made.file(name.lstrip("/"), Path(name).read_bytes(), 0o755)
    for path in binaries[1:]:
        made.file(f"usr/lib/{path.name}", path.read_bytes(), 0o755)
    ours = Path(tegu.__file__).parent
    for name in _NEEDED:
        found = [ours / name] if name.endswith(".py") else sorted((ours / name).rglob("*"))
        for path in found:
            if path.is_file() and path.suffix in (".py", ".o"):
                made.file(f"tegu/tegu/{path.relative_to(ours)}", path.read_bytes())
    return made.pack()


def _library(name: str) -> Path:
    found = re.search(rf"{re.escape(name)} .*=> (\S+)", run_program(["ldconfig", "-p"]).stdout)
    if found is None or shutil.which("qemu-system-x86_64") is None:
        raise BenchError(f"{name} and qemu-system-x86_64 are needed")
    return Path(found[1]).resolve().with_name(name)


def _linked(binaries: list[Path]) -> Iterator[str]:
    """Yield the libraries that these are linked with, under the names they are looked for."""
    seen: set[str] = set()
    for binary in binaries:
        for word in run_program(["ldd", binary]).stdout.split():
            if word.startswith("/") and word not in seen:
                seen.add(word)
                yield word
