"""Disks that are built, checked with the programs that own the formats, and really booted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tegu.errors import BuildError, UnsupportedError
from tegu.image.disk import DiskSpec, build_disk, kernel_cmdline
from tegu.image.formats import content_sha256, write_format
from tegu.image.partition import ESP, Partition, Table, place, read_table, regrow, write_table
from tegu.image.programs import Tools
from tegu.image.vhd import read_footer
from tegu.linux import mount

from .conftest import MIB, Bench, boot, said, spec_of, unpack

pytestmark = pytest.mark.slow

FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "erofs")


@pytest.fixture(scope="session")
def built(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Callable[[DiskSpec], Path]:
    """Build a disk of the tiny system once per spec."""
    directory = tmp_path_factory.mktemp("disks")
    known: dict[DiskSpec, Path] = {}

    def build(spec: DiskSpec) -> Path:
        if spec not in known:
            target = directory / f"{len(known)}.raw"

            def work(tools: Tools, place: Path) -> None:
                tree = unpack(bench.tree, place / "tree")
                build_disk(tree, spec, tools, place / "disk.raw")
                shutil.move(place / "disk.raw", place / "out.raw")
                _hand_out(place / "out.raw", target)

            bench.isolated(work)
            known[spec] = target
        return known[spec]

    return build


def _hand_out(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


CHECKS = {
    "ext4": (["e2fsck", "-f", "-n", "{image}"], ""),
    "xfs": (["xfs_repair", "-f", "-n", "{image}"], ""),
    "btrfs": (["btrfs", "check", "--check-data-csum", "{image}"], "no error found"),
    "erofs": (["fsck.erofs", "--extract", "{image}"], ""),
}


@pytest.mark.parametrize("filesystem", FILE_SYSTEMS)
def test_the_file_system_passes_its_own_check(
    bench: Bench, built: Callable[[DiskSpec], Path], filesystem: str
) -> None:
    disk = built(spec_of(filesystem))
    with disk.open("rb") as f:
        root = read_table(f).partitions[-1]
    argv, words = CHECKS[filesystem]

    def work(tools: Tools, place: Path) -> str:
        with disk.open("rb") as a, (place / "root").open("wb") as b:
            a.seek(root.start)
            for _ in range(root.size // MIB):
                b.write(a.read(MIB))
        done = tools.run(
            [str(place / "root") if w == "{image}" else w for w in argv], binds=[place]
        )
        return done.stdout + done.stderr

    assert words in bench.isolated(work)


def test_partition_tools_accept_the_table(bench: Bench, built: Callable[[DiskSpec], Path]) -> None:
    disk = built(spec_of())

    def work(tools: Tools, place: Path) -> list[str]:
        _hand_out(disk, place / "disk")
        return [
            tools.run(["sfdisk", "--verify", place / "disk"], binds=[place]).stdout,
            tools.run(["sgdisk", "--verify", place / "disk"], binds=[place]).stdout,
            tools.run(["sfdisk", "--json", place / "disk"], binds=[place]).stdout,
        ]

    sfdisk, sgdisk, listing = bench.isolated(work)
    assert "No errors detected" in sfdisk
    assert "No problems found" in sgdisk
    table = json.loads(listing)["partitiontable"]
    spec = spec_of()
    assert [p["name"] for p in table["partitions"]] == ["bios", "esp", "root"]
    assert table["partitions"][2]["uuid"].lower() == str(spec.root_partuuid)
    assert table["partitions"][2]["attrs"] == "GUID:59"
    assert all(p["start"] % 2048 == 0 for p in table["partitions"])


@pytest.mark.parametrize("filesystem", FILE_SYSTEMS)
def test_same_tree_same_bytes(bench: Bench, filesystem: str) -> None:
    """Neither the order in which a tree came about, nor when, nor where, shows in the disk."""

    def work(tools: Tools, place: Path) -> list[str]:
        first = unpack(bench.tree, place / "first")
        second = place / "another/place"
        second.parent.mkdir()
        _copy_backwards(first, second)
        for path in first.rglob("*"):
            if path.is_file() and not path.is_symlink():
                os.utime(path, (1, path.stat().st_mtime))
        digests = []
        for number, tree in enumerate((first, second)):
            disk = place / f"{number}.raw"
            build_disk(tree, spec_of(filesystem), tools, disk)
            digests.append(content_sha256(disk))
        return digests

    first, second = bench.isolated(work)
    assert first == second


def _copy_backwards(source: Path, target: Path) -> None:
    """Copy a tree, making the entries of each directory in reverse order."""
    done: dict[int, Path] = {}

    def copy(a: Path, b: Path) -> None:
        info = a.lstat()
        if a.is_symlink():
            b.symlink_to(a.readlink())
        elif a.is_dir():
            b.mkdir()
            for child in sorted(a.iterdir(), reverse=True):
                copy(child, b / child.name)
        elif info.st_nlink > 1 and info.st_ino in done:
            b.hardlink_to(done[info.st_ino])
        else:
            done[info.st_ino] = b
            shutil.copyfile(a, b)
            for name in os.listxattr(a):
                os.setxattr(b, name, os.getxattr(a, name))
        os.chown(b, info.st_uid, info.st_gid, follow_symlinks=False)
        if not b.is_symlink():
            b.chmod(info.st_mode & 0o7777)
        os.utime(b, (info.st_mtime, info.st_mtime), follow_symlinks=False)

    copy(source, target)


@pytest.mark.parametrize(
    ("filesystem", "firmware", "bus"),
    [
        ("ext4", "bios", "virtio-blk"),
        ("ext4", "uefi", "virtio-blk"),
        ("ext4", "uefi", "nvme"),
        ("ext4", "bios", "virtio-scsi"),
        ("ext4", "bios", "ahci"),
        ("xfs", "bios", "virtio-blk"),
        ("btrfs", "uefi", "virtio-scsi"),
        ("erofs", "bios", "nvme"),
    ],
)
def test_it_boots(
    bench: Bench,
    built: Callable[[DiskSpec], Path],
    filesystem: str,
    firmware: str,
    bus: str,
) -> None:
    spec = spec_of(filesystem)
    console = boot(built(spec), firmware=firmware, bus=bus)
    assert f"TEGU-UP {bench.version}" in console, console[-3000:]
    words = said(console)
    device, kind, options = words["root"].split()
    if filesystem == "erofs":
        assert (device, kind) == ("overlay", "overlay")
    else:
        assert kind == filesystem
        assert options.split(",")[0] == "rw"
    assert words["cmdline"].endswith(kernel_cmdline(spec))
    assert words["sums"] == "good", console[-3000:]
    assert words["modes"].split() == ["1777:0:0", "640:1000:1001", "4755:0:0"]
    assert words["links"] == "2"
    assert words["write"] == "written"
    assert words["grow"] == ""
    assert words["initrd"].startswith("/dev/")
    assert {"/run", "/dev", "/sys", "/proc"} <= set(words["mounts"].split())
    # Only what this bus needs was loaded.
    loaded = set(words["modules"].split())
    assert ("virtio_blk" in loaded) == (bus == "virtio-blk")
    assert ("virtio_scsi" in loaded) == (bus == "virtio-scsi")
    assert "xen_blkfront" not in loaded


def test_a_larger_disk_is_noticed(built: Callable[[DiskSpec], Path], tmp_path: Path) -> None:
    disk = tmp_path / "larger.raw"
    _hand_out(built(spec_of()), disk)
    with disk.open("r+b") as f:
        regrow(f, 600 * MIB)
    console = boot(disk, firmware="bios", bus="virtio-blk")
    assert said(console)["grow"] == "/dev/vda3"


def test_the_kernel_mounts_a_root_that_it_knows_without_an_initrd(
    built: Callable[[DiskSpec], Path],
) -> None:
    console = boot(built(spec_of(initrd="none")), firmware="uefi", bus="nvme")
    # Nothing mounts /proc here, so there is not much to say.
    assert "TEGU-UP" in console, console[-3000:]
    assert said(console)["initrd"] == ""


def test_the_root_is_found_where_the_kernel_does_not_name_it(bench: Bench) -> None:
    """Kernels before 6.8 have no PARTUUID in uevent files: the initrd reads the table itself."""
    from importlib.resources import files

    text = files("tegu.boot").joinpath("init.sh").read_text()
    functions = text[text.index("on_disk_order() {") : text.index("find_root() {")]
    guid = UUID("00112233-4455-6677-8899-aabbccddeeff")

    def work(tools: Tools, place_: Path) -> str:
        parts = [Partition("a", ESP, UUID(int=5), MIB), Partition("b", ESP, guid, MIB)]
        (place_ / "dev").mkdir()
        with (place_ / "dev/vdb").open("w+b") as f:
            f.truncate(8 * MIB)
            write_table(f, Table(UUID(int=1), 8 * MIB, place(parts, 8 * MIB)))
        (place_ / "dev/vda").write_bytes(bytes(MIB))
        for name, number in (("vda/vda1", 1), ("vdb/vdb1", 1), ("vdb/vdb2", 2)):
            directory = place_ / "sys/block" / name
            directory.mkdir(parents=True)
            (directory / "partition").write_text(f"{number}\n")
            event = place_ / "sys/class/block" / directory.name
            event.mkdir(parents=True)
            (event / "uevent").write_text(f"DEVNAME={directory.name}\n")
        script = functions.replace("/sys/", f"{place_}/sys/").replace("/dev/", f"{place_}/dev/")
        script = script.replace("2>/dev/null", "").replace(f"2>{place_}/dev/null", "")
        script = f"set -f; device=''\n{script}\nfind_partition {guid}; echo $device"
        return tools.run(["busybox", "sh", "-c", script], binds=[place_]).stdout

    assert bench.isolated(work).strip().endswith("/dev/vdb2")


def test_init_and_its_arguments_are_passed_on(built: Callable[[DiskSpec], Path]) -> None:
    spec = spec_of(
        cmdline=("console=ttyS0", "panic=1", "no_timer_check", "init=/bin/init", "--", "one", "two")
    )
    assert said(boot(built(spec), firmware="bios", bus="nvme"))["arguments"] == "one two"


def test_a_root_that_never_comes_is_a_clear_message_and_a_panic(
    built: Callable[[DiskSpec], Path],
) -> None:
    spec = spec_of(
        cmdline=(
            "console=ttyS0",
            "panic=1",
            "no_timer_check",
            "tegu.wait=3",
            "root=PARTUUID=dead-beef",
        )
    )
    console = boot(built(spec), firmware="bios", bus="nvme")
    assert "tegu-initrd: no PARTUUID=dead-beef after 3 s" in console
    assert "TEGU-UP" not in console


@pytest.mark.parametrize("how", ["LABEL=root", "UUID={uuid}", "/dev/vda3"])
def test_other_names_of_the_root(built: Callable[[DiskSpec], Path], how: str) -> None:
    name = how.format(uuid=spec_of().uuid("root file system"))
    spec = spec_of(cmdline=("console=ttyS0", "panic=1", "no_timer_check", f"root={name}"))
    assert "TEGU-UP" in boot(built(spec), firmware="bios", bus="virtio-blk")


def test_as_small_as_it_can_be(bench: Bench, built: Callable[[DiskSpec], Path]) -> None:
    disk = built(spec_of(size=None))
    assert disk.stat().st_size < 300 * MIB
    assert "TEGU-UP" in boot(disk, firmware="bios", bus="virtio-blk")


def build_fails(
    bench: Bench, spec: DiskSpec, prepare: Callable[[Path, Path], None] = lambda tree, place: None
) -> tuple[str, list[str]]:
    """Build what cannot be built; returns the error and what is left beside the image."""

    def work(tools: Tools, place: Path) -> tuple[str, list[str]]:
        tree = unpack(bench.tree, place / "tree")
        out = place / "out"
        out.mkdir()
        prepare(tree, out)
        with pytest.raises((BuildError, UnsupportedError)) as caught:
            build_disk(tree, spec, tools, out / "disk.raw")
        return caught.value.message, [p.name for p in out.iterdir()]

    return bench.isolated(work)


@pytest.mark.parametrize("filesystem", FILE_SYSTEMS)
def test_a_system_larger_than_its_disk(bench: Bench, filesystem: str) -> None:
    def prepare(tree: Path, out: Path) -> None:
        (tree / "usr/share/noise").write_bytes(os.urandom(400 * MIB))

    message, left = build_fails(bench, spec_of(filesystem, size=420 * MIB), prepare)
    assert "does not fit its disk" in message
    needed, given = (int(w) for w in message.replace("MiB", "").split() if w.isdigit())
    assert given == 420 - 64 - 3
    assert needed > 400
    assert left == []


def test_a_disk_smaller_than_its_fixed_partitions(bench: Bench) -> None:
    message, left = build_fails(bench, spec_of(size=60 * MIB))
    assert "does not fit its disk" in message
    assert left == []


def test_an_esp_that_is_too_small(bench: Bench) -> None:
    message, left = build_fails(bench, spec_of(esp_size=8 * MIB))
    assert "the boot files need an ESP of" in message
    assert "it has 8 MiB" in message
    assert left == []


@pytest.mark.parametrize("filesystem", FILE_SYSTEMS)
def test_this_machines_disk_is_full(bench: Bench, filesystem: str) -> None:
    def prepare(tree: Path, out: Path) -> None:
        mount("tmpfs", out, data="size=24M")

    message, left = build_fails(bench, spec_of(filesystem), prepare)
    assert "no space left" in message
    assert left == []


def test_a_module_that_is_cut_short(bench: Bench) -> None:
    def prepare(tree: Path, out: Path) -> None:
        module = next(tree.glob("usr/lib/modules/*/kernel/drivers/block/virtio_blk.ko*"))
        module.write_bytes(module.read_bytes()[:1000])

    message, left = build_fails(bench, spec_of(), prepare)
    assert "virtio_blk.ko" in message
    assert "is damaged" in message
    assert left == []


def test_a_tree_without_a_kernel(bench: Bench) -> None:
    def prepare(tree: Path, out: Path) -> None:
        shutil.rmtree(tree / "boot")

    message, left = build_fails(bench, spec_of(), prepare)
    assert "the tree has no kernel" in message
    assert left == []


def test_no_initrd_for_a_root_that_is_a_module(bench: Bench) -> None:
    message, left = build_fails(bench, spec_of("xfs", initrd="none"))
    assert "cannot mount xfs without an initrd" in message
    assert left == []


@pytest.mark.parametrize("format_name", ["raw", "qcow2", "vhd", "vhd-fixed", "tar", "oci"])
def test_formats_are_the_same_twice_and_whole(bench: Bench, format_name: str) -> None:
    spec = spec_of(size=256 * MIB)

    def work(tools: Tools, place: Path) -> list[tuple[str, str, dict[str, object]]]:
        tree = unpack(bench.tree, place / "tree")
        raw = place / "disk.raw"
        build_disk(tree, spec, tools, raw)
        results = []
        for number in range(2):
            out = place / f"out{number}"
            manifest = write_format(
                format_name,
                root=tree,
                raw=raw,
                directory=out,
                spec=spec,
                tools=tools,
                lock="0" * 64,
                packages=1,
            )
            made = out / manifest.file
            written = json.loads((out / f"{manifest.file}.json").read_text())
            assert sorted(p.name for p in out.iterdir()) == sorted([made.name, f"{made.name}.json"])
            results.append((_digest(made), manifest.sha256, written))
            _check_format(format_name, made, raw, tools, out)
        return results

    (first, sha, manifest), (second, _, again) = bench.isolated(work)
    assert first == second
    assert manifest == again
    assert manifest["architecture"] == "x86-64"
    if format_name in ("qcow2", "vhd", "tar"):
        assert sha == first
    if format_name in ("raw", "qcow2", "vhd", "vhd-fixed"):
        assert manifest["virtual_size"] == 256 * MIB


def _digest(path: Path) -> str:
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return whole.hexdigest()


def _check_format(format_name: str, made: Path, raw: Path, tools: Tools, out: Path) -> None:
    binds = [out, raw.parent]
    if format_name == "qcow2":
        tools.run(["qemu-img", "check", made], binds=binds)
        tools.run(["qemu-img", "compare", made, raw], binds=binds)
        info = tools.run(["qemu-img", "info", "--output=json", made], binds=binds).stdout
        assert json.loads(info)["format-specific"]["data"]["compression-type"] == "zstd"
    elif format_name in ("vhd", "vhd-fixed"):
        assert read_footer(made).size == raw.stat().st_size
        tools.run(["qemu-img", "compare", "-f", "vpc", made, raw], binds=binds)
    elif format_name == "tar":
        listed = tools.run(["tar", "-tf", made], binds=binds).stdout.splitlines()
        assert listed == sorted(listed)
    elif format_name == "oci":
        _check_oci(made)


def _check_oci(made: Path) -> None:
    """Every blob is what its name says, and all that is referred to is there."""
    for blob in (made / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    index = json.loads((made / "index.json").read_text())
    entry = index["manifests"][0]
    manifest = json.loads((made / "blobs/sha256" / entry["digest"][7:]).read_text())
    for part in (manifest["config"], *manifest["layers"]):
        assert (made / "blobs/sha256" / part["digest"][7:]).stat().st_size == part["size"]


def test_a_qcow2_boots(bench: Bench, tmp_path: Path) -> None:
    target = tmp_path / "disk.qcow2"

    def work(tools: Tools, place: Path) -> None:
        tree = unpack(bench.tree, place / "tree")
        spec = spec_of(size=2048 * MIB)
        build_disk(tree, spec, tools, place / "disk.raw")
        manifest = write_format(
            "qcow2",
            root=tree,
            raw=place / "disk.raw",
            directory=place,
            spec=spec,
            tools=tools,
            lock="",
            packages=0,
        )
        _hand_out(place / manifest.file, target)

    bench.isolated(work)
    assert "TEGU-UP" in boot(target, firmware="uefi", bus="virtio-blk")
