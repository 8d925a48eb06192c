"""Disks with two slots, really booted: what is checked, what is kept, and what is tried once."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tegu.boot.slots import BootName, SlotImage
from tegu.emulator.arch import MACHINES
from tegu.image.disk import DiskSpec
from tegu.image.formats import content_sha256
from tegu.image.immutable import build_immutable, make_slot
from tegu.image.partition import read_table
from tegu.image.programs import Tools
from tegu.lab.firmware import find_uefi

from .conftest import BUSES, MIB, Bench, said, spec_of, unpack

pytestmark = pytest.mark.slow

INIT = r"""#!/bin/busybox sh
PATH=/bin
for place in / /etc /var /var/lib/dpkg /home; do
	while read -r device point type options rest; do
		[ "$point" = "$place" ] && echo "mount: $point $device $type ${options%%,*}"
	done </proc/mounts
done
echo "slot: $(cat /run/tegu/slot)"
echo "version: $(cat /usr/share/version)"
echo "grow: $(cat /run/tegu/grow 2>/dev/null)"
(: >/x) 2>/dev/null && echo "root: written"
(: >/var/lib/dpkg/x) 2>/dev/null && echo "dpkg: written"
echo "before: $(cat /etc/kept /var/kept /home/kept 2>/dev/null | tr '\n' ' ')"
cat /usr/share/version >>/etc/kept
cat /usr/share/version >>/var/kept
cat /usr/share/version >>/home/kept
echo "packages: $(cat /var/lib/dpkg/status)"
cd /
sha256sum -c /etc/sums >/dev/null 2>&1 && echo "sums: good" || echo "sums: bad"
sync
echo TEGU-UP
poweroff -f
"""


def slots_spec(version: str = "1", **more: Any) -> DiskSpec:
    return spec_of(
        "erofs",
        version=version,
        firmware=("uefi",),
        layout="immutable",
        slot_size=100 * MIB,
        **more,
    )


def slot_tree(bench: Bench, place: Path, version: str) -> Path:
    """The tiny tree with what this layout needs, and `version` in it."""
    tree = unpack(bench.tree, place)
    for name in ("var/lib/dpkg", "home", "root", "srv"):
        (tree / name).mkdir(parents=True)
    (tree / "usr/bin/init").write_text(INIT)
    (tree / "usr/share/version").write_text(f"{version}\n")
    (tree / "var/lib/dpkg/status").write_text(f"those of {version}\n")
    sums = (tree / "etc/sums").read_text().splitlines()
    kept = [line for line in sums if not line.endswith("usr/bin/init")]
    (tree / "etc/sums").write_text("\n".join(kept) + "\n")
    return tree


@dataclass(frozen=True)
class Slots:
    """A disk whose slot a has version 1; one whose slot b has version 2 as well, to be tried."""

    one: Path
    both: Path


@pytest.fixture(scope="module")
def slots(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Slots:
    directory = tmp_path_factory.mktemp("slots")

    def work(tools: Tools, place: Path) -> None:
        first = slot_tree(bench, place / "first", "1")
        slot = make_slot(first, slots_spec(), tools, place / "1.slot", {})
        table = build_immutable(first, slot, slots_spec(), tools, place / "disk.raw")
        again = make_slot(first, slots_spec(), tools, place / "again.slot", {})
        for path in slot.iterdir():
            assert path.read_bytes() == (again / path.name).read_bytes()
        build_immutable(first, again, slots_spec(), tools, place / "again.raw")
        assert content_sha256(place / "again.raw") == content_sha256(place / "disk.raw")
        (place / "again.raw").unlink()
        hand_out(place / "disk.raw", directory / "one.raw")
        second = slot_tree(bench, place / "second", "2")
        new = make_slot(second, slots_spec("2"), tools, place / "2.slot", {})
        parts = {p.label: p for p in table.partitions}
        with (place / "disk.raw").open("r+b") as f:
            for label, name in (("root-b", "root.erofs"), ("tree-b", "root.verity")):
                f.seek(parts[label].start)
                f.write((new / name).read_bytes())
        target = f"{place / 'disk.raw'}@@{parts['esp'].start}"
        entry = BootName("tiny", 2, "2", 1).path
        tools.run(["mcopy", "-i", target, new / "boot.efi", f"::/{entry}"], binds=[place])
        hand_out(place / "disk.raw", directory / "both.raw")

    bench.isolated(work)
    return Slots(directory / "one.raw", directory / "both.raw")


def hand_out(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a disk that may be written to."""

    def make(disk: Path) -> Path:
        hand_out(disk, tmp_path / disk.name)
        return tmp_path / disk.name

    return make


def start(disk: Path, *, timeout: float = 900) -> str:
    """Start the machine until it is off or starts again; returns what its console said."""
    facts = MACHINES["x86-64"]
    with tempfile.TemporaryDirectory() as directory:
        files = find_uefi(facts)
        variables = shutil.copy(files.variables, directory)
        argv = [facts.qemu, "-accel", "tcg", "-cpu", facts.tcg_cpu_qemu7, "-m", "512"]
        argv += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none"]
        argv += ["-no-reboot", "-machine", "q35"]
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={files.code}"]
        argv += ["-drive", f"if=pflash,format=raw,file={variables}"]
        argv += ["-drive", f"if=none,id=disk,format=raw,file={disk}", *BUSES["virtio-blk"]]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace").replace("\r", "")


def test_a_slot_boots_checked_and_what_is_written_stays(
    slots: Slots, copy: Callable[[Path], Path]
) -> None:
    disk = copy(slots.one)
    console = start(disk)
    assert "TEGU-UP" in console, console[-3000:]
    mounts = [line for line in console.splitlines() if line.startswith("mount: ")]
    assert mounts[0] == "mount: / /dev/dm-0 erofs ro"
    assert mounts[1].startswith("mount: /etc overlay overlay rw")
    assert mounts[2].split()[1::2] == ["/var", "ext4"]
    assert mounts[3] == "mount: /var/lib/dpkg /dev/dm-0 erofs ro"
    assert mounts[4].split()[1::2] == ["/home", "ext4"]
    words = said(console)
    assert (words["slot"], words["version"], words["sums"]) == ("a", "1", "good")
    assert words["packages"] == "those of 1"
    assert words["before"] == ""
    assert "root: written" not in console
    assert "dpkg: written" not in console
    again = said(start(disk))
    assert again["before"].split() == ["1", "1", "1"]


def test_a_tampered_block_is_refused(slots: Slots, copy: Callable[[Path], Path]) -> None:
    disk = copy(slots.one)
    with disk.open("r+b") as f:
        table = read_table(f)
        root = next(p for p in table.partitions if p.label == "root-a")
        f.seek(root.start)
        data = f.read(root.size)
        # Making the sums of all files reads all that there is.
        last = len(data.rstrip(b"\0")) - 1
        f.seek(root.start + last)
        f.write(bytes([data[last] ^ 0xFF]))
    console = start(disk)
    assert "corrupted" in console, console[-3000:]
    assert "sums: good" not in console


def test_a_slot_that_cannot_start_is_tried_once(slots: Slots, copy: Callable[[Path], Path]) -> None:
    disk = copy(slots.both)
    with disk.open("r+b") as f:
        root = next(p for p in read_table(f).partitions if p.label == "root-b")
        f.seek(root.start + 1024)
        f.write(bytes(4))  # the file system's magic number
    console = start(disk)
    assert "TEGU-UP" not in console
    assert "Kernel panic" in console, console[-3000:]
    console = start(disk)
    words = said(console)
    assert (words["slot"], words["version"], words["sums"]) == ("a", "1", "good")


def test_a_new_slot_comes_first_and_finds_what_is_shared(
    slots: Slots, copy: Callable[[Path], Path]
) -> None:
    disk = copy(slots.both)
    words = said(start(disk))
    assert (words["slot"], words["version"], words["sums"]) == ("b", "2", "good")
    assert words["packages"] == "those of 2"
    # Nobody said that it is well: the other one is what starts.
    words = said(start(disk))
    assert (words["slot"], words["version"]) == ("a", "1")
    assert words["before"].split() == ["2", "2", "2"]


def test_a_slot_says_what_it_is(bench: Bench) -> None:
    def work(tools: Tools, place: Path) -> tuple[SlotImage, list[str]]:
        tree = slot_tree(bench, place / "tree", "1")
        slot = make_slot(tree, slots_spec(), tools, place / "1.slot", {"a": "1"})
        return SlotImage.parse((slot / "slot.json").read_bytes()), sorted(
            p.name for p in slot.iterdir()
        )

    image, files = bench.isolated(work)
    assert files == ["boot.efi", "root.erofs", "root.verity", "slot.json"]
    assert (image.name, image.version, image.packages) == ("tiny", "1", {"a": "1"})
