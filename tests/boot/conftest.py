"""A machine as small as can be: Debian's cloud kernel, busybox, and an init that says how it went.

Built with the programs of a lock's tools tree, in the namespaces in which images are built. All of
it is fetched through the packages room into the shared store, so a second run fetches nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tegu.definition.models import Definition, Kernel, System
from tegu.emulator.arch import MACHINES
from tegu.image.disk import DiskSpec
from tegu.image.tools import LockedTools, locked_tools
from tegu.image.unpack import open_unpacked, unpack_missing
from tegu.lab.firmware import find_uefi
from tegu.linux import run_isolated
from tegu.packages import Lock, fetch_all, make_lock
from tegu.store import Store

T = TypeVar("T")
MIB = 1 << 20
TIMESTAMP = 1_790_000_000
TOOLS = (
    "btrfs-progs",
    "busybox-static",
    "dmsetup",
    "dosfstools",
    "dpkg",
    "e2fsprogs",
    "erofs-utils",
    "faketime",
    "fdisk",
    "gdisk",
    "grub-common",
    "grub-pc-bin",
    "kmod",
    "mtools",
    "qemu-utils",
    "sbsigntool",
    "systemd-boot-efi",
    "xfsprogs",
    "zstd",
)
# What of the kernel's modules the tiny system keeps; depmod sees no others.
KEPT = ("arch", "crypto", "drivers/ata", "drivers/block", "drivers/hv", "drivers/nvme", "fs", "lib")
KEPT += ("drivers/md", "drivers/scsi", "drivers/virtio", "drivers/net/virtio_net.ko.xz", "net/core")

INIT = r"""#!/bin/busybox sh
PATH=/bin
while read -r device place type options rest; do
	[ "$place" = / ] && echo "root: $device $type $options"
done </proc/mounts
read -r cmdline </proc/cmdline
echo "cmdline: $cmdline"
echo "arguments: $*"
echo "grow: $(cat /run/tegu/grow 2>/dev/null)"
echo "initrd: $(cat /run/tegu/initrd 2>/dev/null)"
echo "mounts: $(cut -d' ' -f2 /proc/mounts | tr '\n' ' ')"
cd /
if sha256sum -c /etc/sums >/tmp/sums 2>&1; then echo "sums: good"; else grep -v OK /tmp/sums; fi
echo "modes: $(stat -c %a:%u:%g /tmp /etc/owned /bin/setuid | tr '\n' ' ')"
echo "links: $(stat -c %h /etc/first)"
echo written >/etc/written && echo "write: $(cat /etc/written)"
echo "modules: $(cut -d' ' -f1 /proc/modules | tr '\n' ' ')"
echo "TEGU-UP $(uname -r)"
poweroff -f
"""


@dataclass(frozen=True)
class Bench:
    """The tools tree and the tiny system. `work` gets the tools and an empty directory."""

    store: Store
    lock: Lock
    tree: Path
    version: str

    def isolated(self, work: Callable[[LockedTools, Path], T]) -> T:
        def inside(_: Callable[[Any], None]) -> T:
            with (
                self.store.scratch() as scratch,
                locked_tools(self.store, self.lock.tools, scratch, timestamp=TIMESTAMP) as tools,
            ):
                place = scratch / "place"
                place.mkdir()
                return work(tools, place)

        return run_isolated(inside)


@pytest.fixture(scope="session")
def bench(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    definition = Definition(system=System(name="tiny", version="1"), kernel=Kernel())
    lock = make_lock(definition, shared_store, tools=TOOLS)
    kernel = [p for p in lock.system if p.name.startswith("linux-image-6")]
    assert len(kernel) == 1
    wanted = (*lock.tools, *kernel)
    fetch_all(wanted, lock, shared_store)
    directory = tmp_path_factory.mktemp("tiny")

    def make(tools: LockedTools, place: Path) -> str:
        unpack_missing(shared_store, wanted)
        found = open_unpacked(shared_store, kernel[0])
        assert found is not None
        tree = place / "tree"
        version = _make_tree(tree, found.root, tools.path("usr/bin/busybox"))
        tools.run(["depmod", "-b", tree, version], binds=[place])
        _clamp(tree)
        # Out of the namespaces as an archive: owners are as they should be only inside.
        subprocess.run(["tar", "-C", tree, "-cf", directory / "tree.tar", "."], check=True)
        return version

    bench = Bench(shared_store, lock, directory / "tree.tar", "")
    bench = replace(bench, version=bench.isolated(make))
    yield bench
    shutil.rmtree(directory)


def _make_tree(tree: Path, kernel: Path, busybox: Path) -> str:
    version = next((kernel / "usr/lib/modules").iterdir()).name
    for name in ("boot", "dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "usr/share/odd"):
        (tree / name).mkdir(parents=True)
    for name in ("bin", "sbin"):
        (tree / name).symlink_to("usr/bin")
    (tree / "lib").symlink_to("usr/lib")
    shutil.copy(kernel / f"boot/vmlinuz-{version}", tree / "boot")
    source, target = (base / "usr/lib/modules" / version for base in (kernel, tree))
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target)
    for name in KEPT:
        path = source / "kernel" / name
        if path.is_dir():
            shutil.copytree(path, target / "kernel" / name, symlinks=True)
        elif path.exists():
            (target / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / "kernel" / name)
    shutil.copy(busybox, tree / "usr/bin/busybox")
    (tree / "usr/bin/busybox").chmod(0o755)
    for name in ("cat", "cut", "grep", "poweroff", "sh", "sha256sum", "stat", "tr", "uname"):
        (tree / "usr/bin" / name).symlink_to("busybox")
    (tree / "usr/bin/init").write_text(INIT)
    (tree / "usr/bin/init").chmod(0o755)
    (tree / "usr/bin/setuid").write_bytes(b"\x7fELF" + bytes(100))
    (tree / "usr/bin/setuid").chmod(0o4755)
    (tree / "tmp").chmod(0o1777)
    (tree / "etc/os-release").write_text("ID=tiny\nPRETTY_NAME=\"Tiny 'quoted' 1\"\n")
    _odd_files(tree)
    return version


def _odd_files(tree: Path) -> None:
    """Files that a file system maker could get wrong."""
    odd = tree / "usr/share/odd"
    (odd / "empty").touch()
    (odd / "with space and (brackets)").write_text("spaces\n")
    (odd / ":colon:first").write_text("colon\n")
    (odd / "größe").write_text("non-ascii\n")
    (odd / "small").write_text("x")
    (odd / "large").write_bytes(bytes(range(256)) * 4096 * 5)
    (odd / "many").mkdir()
    for i in range(700):
        (odd / "many" / f"{i * 7919 % 700:03d}-{'n' * 30}").write_text(f"{i}\n")
    with (odd / "sparse").open("wb") as f:
        f.truncate(3 * MIB)
        f.seek(2 * MIB)
        f.write(b"data")
    (odd / "old").write_text("old\n")
    os.utime(odd / "old", (1_000_000_000, 1_000_000_000))
    (odd / "attribute").write_text("attribute\n")
    os.setxattr(odd / "attribute", "user.tegu", b"value")
    (odd / "link").symlink_to("../odd/small")
    (tree / "etc/first").write_text("hard\n")
    (tree / "etc/second").hardlink_to(tree / "etc/first")
    (tree / "etc/owned").write_text("owned\n")
    os.chown(tree / "etc/owned", 1000, 1001)
    (tree / "etc/owned").chmod(0o640)
    files = sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_symlink())
    names = [f"./{p.relative_to(tree)}" for p in files if "modules" not in p.parts]
    sums = subprocess.run(["sha256sum", "--", *names], cwd=tree, capture_output=True, check=True)
    (tree / "etc/sums").write_bytes(sums.stdout)


def _clamp(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        if path.lstat().st_mtime > TIMESTAMP:
            os.utime(path, (TIMESTAMP, TIMESTAMP), follow_symlinks=False)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack the tiny tree (inside the namespaces)."""
    target.mkdir()
    subprocess.run(
        ["tar", "-C", target, "--xattrs", "--numeric-owner", "-xpf", archive], check=True
    )
    return target


def spec_of(filesystem: str = "ext4", **changes: Any) -> DiskSpec:
    values: dict[str, Any] = {
        "name": "tiny",
        "version": "1",
        "architecture": "x86-64",
        "size": 512 * MIB,
        "filesystem": filesystem,
        "firmware": ("uefi", "bios"),
        "esp_size": 64 * MIB,
        "seed": "0123456789abcdef" * 4,
        "timestamp": TIMESTAMP,
        "cmdline": ("console=ttyS0", "panic=1", "quiet", "no_timer_check"),
    }
    return DiskSpec(**(values | changes))


BUSES = {
    "virtio-blk": ["-device", "virtio-blk-pci,drive=disk"],
    "virtio-scsi": ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk"],
    "nvme": ["-device", "nvme,serial=tegu,drive=disk"],
    "ahci": ["-device", "ahci,id=ahci", "-device", "ide-hd,drive=disk,bus=ahci.0"],
}


def boot(disk: Path, *, firmware: str, bus: str, timeout: float = 420) -> str:
    """Boot a copy-on-write view of `disk` until it powers off; returns what its console said."""
    facts = MACHINES["x86-64"]
    with tempfile.TemporaryDirectory() as directory:
        argv = [facts.qemu, "-accel", "tcg", "-cpu", facts.tcg_cpu_qemu7, "-m", "512"]
        argv += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none"]
        argv += ["-no-reboot", "-snapshot", "-machine", "q35" if firmware == "uefi" else "pc"]
        if firmware == "uefi":
            files = find_uefi(facts)
            variables = shutil.copy(files.variables, directory)
            flash = "if=pflash,format=raw"
            argv += ["-drive", f"{flash},readonly=on,file={files.code}"]
            argv += ["-drive", f"{flash},file={variables}"]
        image = "qcow2" if disk.suffix == ".qcow2" else "raw"
        argv += ["-drive", f"if=none,id=disk,format={image},file={disk}", *BUSES[bus]]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as e:
            raise AssertionError(
                f"no end after {timeout} s:\n{(e.stdout or b'')[-3000:].decode(errors='replace')}"
            ) from e
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace").replace("\r", "")


def said(console: str) -> dict[str, str]:
    """Return what the tiny system's init said, by its first word."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console)
    lines = (line.partition(": ") for line in plain.splitlines())
    return {key: value for key, colon, value in lines if colon and " " not in key}
