"""The guest of bench/qos: one processor whose time follows instructions, all in an initramfs.

QEMU's TCG with -icount (see bench/boot/guest.py): a tick of the guest's clock is an instruction, so
the host's load changes nothing; an idle guest jumps to its next timer (`sleep=off`), and nothing
here waits for anything but timers. The kernel is the stock one of Debian 13 (it has null_blk, a
block device with a fixed latency); programs are this machine's own, with what ldd(1) names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.boot import stock
from bench.boot.guest import CPU
from bench.common import BenchError

from tegu.boot.cpio import Archive
from tegu.boot.modules import ModuleTree
from tegu.packages.tegu_deb import host_files
from tegu.process import require, run

__all__ = ["Lab", "prepare"]

SHIFT = 2
"""Nanoseconds of an instruction, as a power of two, where nothing else is said."""
TIMEOUT = 3000.0
MODULES = ("null_blk", "bfq")
SCRIPTS = (Path(__file__).with_name("inside.py"),)
PYTHON = Path("/usr/bin/python3")
_LEFT_OUT = re.compile(
    r"/(test|tests|idlelib|tkinter|lib2to3|ensurepip|unittest|pydoc_data|config-3[^/]*|distutils|"
    r"turtledemo|__pycache__|dist-packages|site-packages)(/|$)"
)
INIT = """#!/bin/busybox sh
busybox mkdir -p /proc /sys /dev /run /tmp
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs run /run
busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup -o memory_recursiveprot
busybox ifconfig lo up
MODULES
PYTHONPATH=/tegu PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -S -m SCRIPT 2>&1
echo "@@ {\\"name\\": \\"exit\\"}"
busybox poweroff -f
"""


@dataclass(frozen=True)
class Lab:
    """What every guest starts from: the kernel, and files of the initramfs by path."""

    kernel: Path
    files: Mapping[str, tuple[bytes, int]]
    modules: Sequence[str]

    def ask(
        self,
        scenario: Mapping[str, Any],
        *,
        memory: int,
        null_blk: str = "",
        script: str = "bench.qos.inside",
        shift: int = SHIFT,
    ) -> list[dict[str, Any]]:
        """Boot, run the scenario, return what was said; raises BenchError when it did not end."""
        archive = Archive(0)
        for name in ("proc", "sys", "dev", "run", "tmp", "var/lib"):
            archive.directory(name)
        for name, (data, mode) in self.files.items():
            archive.file(name, data, mode)
        loads = [
            f"busybox insmod /modules/{m}.ko {null_blk if m == 'null_blk' else ''}"
            for m in self.modules
        ]
        init = INIT.replace("MODULES", "\n".join(loads)).replace("SCRIPT", script)
        archive.file("init", init.encode(), 0o755)
        archive.file("scenario.json", json.dumps(scenario).encode())
        with tempfile.TemporaryDirectory(prefix="qos-") as folder:
            initrd, console = Path(folder) / "initrd", Path(folder) / "console"
            initrd.write_bytes(archive.pack())
            run(
                [
                    require("qemu-system-x86_64", package="qemu-system-x86"),
                    *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
                    *("-machine", "q35", "-accel", "tcg,thread=single", "-cpu", CPU, "-smp", "1"),
                    *("-icount", f"shift={shift},sleep=off", "-m", f"{memory}M"),
                    *("-serial", f"file:{console}", "-kernel", self.kernel, "-initrd", initrd),
                    *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
                ],
                timeout=TIMEOUT,
            )
            text = console.read_text(errors="replace").replace("\r", "")
        said = [json.loads(line[3:]) for line in text.splitlines() if line.startswith("@@ ")]
        if not any(s["name"] == "end" for s in said):
            raise BenchError(f"the guest did not finish: {' / '.join(text.splitlines()[-8:])}")
        return said


def prepare(
    cache: Path,
    scratch: Path,
    *,
    modules: Sequence[str] = MODULES,
    packages: Sequence[str] = (),
    programs: Sequence[str] = (),
    scripts: Sequence[Path] = SCRIPTS,
) -> Lab:
    """Gather the kernel with `modules`, Python, `scripts`, and `programs`.

    A program is this machine's, or one of the distribution's `packages`, which are not installed.
    """
    image = stock.build(stock.CLOUD, cache)
    tree = scratch / "stock"
    (tree / "usr/lib").mkdir(parents=True)
    debugfs = require("debugfs", package="e2fsprogs")
    source = f"{image.disk}?offset={2**20}"
    run([debugfs, "-R", f"rdump /usr/lib/modules {tree / 'usr/lib'}", source], timeout=300)
    (version,) = [p.name for p in (tree / "usr/lib/modules").iterdir()]
    closure = ModuleTree(tree, version).closure(modules)
    files: dict[str, tuple[bytes, int]] = {}
    for module in closure:
        data = ModuleTree(tree, version).read(module)
        files[f"modules/{module.name}.ko"] = (data, 0o644)
    work = scratch / "work"
    gcc = require("gcc", package="gcc")
    source_file = Path(__file__).with_name("work.c")
    run([gcc, "-O2", "-static", "-pthread", "-o", work, source_file], timeout=120)
    files["bin/work"] = (work.read_bytes(), 0o755)
    files["bin/busybox"] = (Path(require("busybox", package="busybox-static")).read_bytes(), 0o755)
    for script in scripts:
        files[f"tegu/bench/{script.parent.name}/{script.name}"] = (script.read_bytes(), 0o644)
    for name, data in host_files():
        if not name.startswith(("probe/bpf", "oci/", "sandbox/", "cli/")):
            files[f"tegu/tegu/{name}"] = (data, 0o644)
    found = _unpacked(cache, packages) if packages else scratch
    libraries = found / "usr/lib/x86_64-linux-gnu"
    folders = [found / "usr/bin", found / "usr/sbin", found / "sbin"]
    for program in (*(_find(name, folders) for name in programs), PYTHON):
        for path, data in _with_libraries(program, libraries):
            files[path] = (data, 0o755)
    # What the C library loads by itself when a thread ends.
    asked = run([require("gcc", package="gcc"), "-print-file-name=libgcc_s.so.1"]).stdout.strip()
    files["lib/x86_64-linux-gnu/libgcc_s.so.1"] = (Path(asked).read_bytes(), 0o755)
    for path, data in _standard_library(libraries):
        files[path] = (data, 0o755)  # the loader is among them
    return Lab(image.kernel, files, [m.name for m in closure])


def _find(name: str, folders: Sequence[Path]) -> Path:
    return next((f / name for f in folders if (f / name).exists()), None) or Path(require(name))


def _unpacked(cache: Path, packages: Sequence[str]) -> Path:
    """Return the distribution's packages, unpacked in the cache."""
    folder = cache / f"packages-{hashlib.sha256(repr(packages).encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix="packages-", dir=cache) as scratch:
            new = Path(scratch)
            run(["apt-get", "download", *packages], cwd=new, timeout=300)
            for deb in sorted(new.glob("*.deb")):
                run(["dpkg-deb", "-x", deb, new / "tree"])
            (new / "tree").rename(folder)
    return folder


def _with_libraries(program: Path, libraries: Path) -> Iterator[tuple[str, bytes]]:
    yield f"usr/bin/{program.name}", program.read_bytes()
    env = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    for line in run(["ldd", program.resolve()], env=env).stdout.splitlines():
        found = re.search(r"(?:(\S+) => )?(/\S+) \(0x", line)
        if found:
            path = Path(found[2])
            inside = found[2][1:] if found[1] is None else f"lib/x86_64-linux-gnu/{found[1]}"
            yield inside, path.read_bytes()


def _standard_library(libraries: Path) -> Iterator[tuple[str, bytes]]:
    asked = run([PYTHON, "-c", "import os; print(os.path.dirname(os.__file__))"])
    folder = Path(asked.stdout.strip())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _LEFT_OUT.search(str(path.parent.relative_to(folder.parent))):
            yield str(path)[1:], path.read_bytes()
            if path.suffix == ".so":
                yield from list(_with_libraries(path, libraries))[1:]
