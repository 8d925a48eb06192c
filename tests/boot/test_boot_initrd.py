"""The initrd's parts: cpio, modules and their order, the script that loads them."""

from __future__ import annotations

import contextlib
import lzma
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.boot import build_initrd
from tegu.boot.cpio import Archive
from tegu.boot.initrd import compress, load_script
from tegu.boot.modules import ModuleTree, canonical
from tegu.errors import BuildError

VERSION = "6.1.0-test"
ELF = b"\x7fELF" + bytes(60)
# A 64-bit ELF header without program headers: as static as can be.
STATIC = b"\x7fELF\x02\x01\x01" + bytes(25) + (64).to_bytes(8, "little") + bytes(14)
STATIC += (56).to_bytes(2, "little") + bytes(8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with a made-up kernel: virtio_blk, a SCSI stack, a file system, some built in."""
    modules = tmp_path / "usr/lib/modules" / VERSION
    modules.mkdir(parents=True)
    dependencies = {
        "kernel/a/virtio_blk.ko": "",
        "kernel/a/scsi-common.ko.xz": "",
        "kernel/a/scsi_mod.ko.xz": "kernel/a/scsi-common.ko.xz",
        "kernel/a/sd_mod.ko": "kernel/a/scsi_mod.ko.xz kernel/a/scsi-common.ko.xz",
        "kernel/a/slowfs.ko": "kernel/a/crc.ko",
        "kernel/a/crc.ko": "",
        "kernel/a/sum_generic.ko": "",
        "kernel/a/always.ko": "",
    }
    for path in dependencies:
        file = modules / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress(ELF) if path.endswith(".xz") else ELF)
    (modules / "modules.dep").write_text("".join(f"{k}: {v}\n" for k, v in dependencies.items()))
    (modules / "modules.builtin").write_text("kernel/b/ext4.ko\nkernel/b/virtio_pci.ko\n")
    (modules / "modules.builtin.modinfo").write_bytes(b"b.license=GPL\0b.alias=crypto-b\0")
    (modules / "modules.softdep").write_text(
        "# comment\nsoftdep slowfs pre: checksum post: crypto-b\nsoftdep crc pre: nothing-here\n"
    )
    (modules / "modules.alias").write_text(
        "# comment\n"
        "alias virtio:d00000002v* virtio_blk\n"
        "alias scsi:t-0x00* sd_mod\n"
        "alias check* sum_generic\n"
        "alias fs-slowfs slowfs\n"
        "alias pci:v*d*(odd;name)* virtio_blk\n"
    )
    (tmp_path / "busybox").write_bytes(STATIC)
    return tmp_path


def names(tree: ModuleTree, *wanted: str) -> list[str]:
    return [m.name for m in tree.closure(wanted)]


def test_what_a_module_needs_comes_before_it(root: Path) -> None:
    tree = ModuleTree(root, VERSION)
    assert names(tree, "sd_mod") == ["scsi_common", "scsi_mod", "sd_mod"]
    assert names(tree, "scsi-mod", "sd_mod") == ["scsi_common", "scsi_mod", "sd_mod"]


def test_built_in_modules_are_left_out(root: Path) -> None:
    assert names(ModuleTree(root, VERSION), "ext4", "virtio-pci") == []


def test_soft_dependencies_are_resolved_through_aliases(root: Path) -> None:
    assert names(ModuleTree(root, VERSION), "slowfs") == ["crc", "sum_generic", "slowfs"]


def test_a_module_that_does_not_exist_names_the_nearest(root: Path) -> None:
    with pytest.raises(BuildError, match="no module virtio_blok") as caught:
        names(ModuleTree(root, VERSION), "virtio_blok")
    assert caught.value.hint == "did you mean virtio_blk?"


def test_optional_modules_may_be_missing(root: Path) -> None:
    tree = ModuleTree(root, VERSION)
    assert [m.name for m in tree.closure([], optional=["xen_blkfront", "crc"])] == ["crc"]


def test_a_kernel_without_modules(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no modules for kernel 1\.2\.3"):
        ModuleTree(tmp_path, "1.2.3")


@pytest.mark.parametrize("text", ["kernel/a/virtio_blk.ko\n", "kernel/a/x.ko: kernel/a/gone.ko\n"])
def test_damaged_lists(root: Path, text: str) -> None:
    (root / "usr/lib/modules" / VERSION / "modules.dep").write_text(text)
    with pytest.raises(BuildError, match=r"modules\.dep is damaged"):
        names(ModuleTree(root, VERSION), "x")


def test_modules_in_a_circle(root: Path) -> None:
    text = "k/a.ko: k/b.ko\nk/b.ko: k/a.ko\n"
    (root / "usr/lib/modules" / VERSION / "modules.dep").write_text(text)
    with pytest.raises(BuildError, match="circle"):
        names(ModuleTree(root, VERSION), "a")


def test_lists_that_depmod_did_not_write(root: Path) -> None:
    (root / "usr/lib/modules" / VERSION / "modules.dep").unlink()
    with pytest.raises(BuildError, match=r"modules\.dep is missing") as caught:
        names(ModuleTree(root, VERSION), "crc")
    assert caught.value.hint == f"run depmod {VERSION}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("scsi-common.ko.xz", lzma.compress(ELF)[:-8]),
        ("scsi-common.ko.xz", b"not xz"),
        ("scsi-common.ko.xz", lzma.compress(b"not a module")),
        ("sd_mod.ko", b""),
    ],
)
def test_damaged_module_files(root: Path, name: str, data: bytes) -> None:
    (root / "usr/lib/modules" / VERSION / "kernel/a" / name).write_bytes(data)
    with pytest.raises(BuildError, match=f"{re.escape(name)} is damaged"):
        build_initrd(root, VERSION, ["sd_mod"], root / "busybox", 0)


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_any_list_is_read_or_refused(dep: str, soft: str, alias: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        modules = Path(name) / "usr/lib/modules/1"
        modules.mkdir(parents=True)
        for file, text in (("dep", dep), ("softdep", soft), ("alias", alias), ("builtin", dep)):
            (modules / f"modules.{file}").write_text(text, errors="surrogateescape")
        tree = ModuleTree(Path(name), "1")
        with contextlib.suppress(BuildError):
            tree.closure([], optional=[canonical(line) for line in dep.split()])


def test_the_load_script_is_a_shell_script_that_loads_in_order(root: Path) -> None:
    tree = ModuleTree(root, VERSION)
    wanted = ["sd_mod", "virtio_blk", "always"]
    script = load_script(tree, tree.closure([*wanted, "slowfs"]), wanted, ["slowfs", "ext4"])

    def run(call: str) -> list[str]:
        stubs = "insmod() { echo ${1#/lib/tegu/modules/}; }; say() { echo said $1; }"
        program = f"{stubs}\n{script}\n{call}\n"
        done = subprocess.run(["sh", "-eu"], input=program, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.replace(".ko", "").split()

    assert run("driver_for virtio:d00000002v00001AF4") == ["virtio_blk"]
    assert run("driver_for scsi:t-0x00") == ["scsi_common", "scsi_mod", "sd_mod"]
    assert run("driver_for 'pci:v1d2(odd;name)3'") == ["virtio_blk"]
    assert run("driver_for pci:v00008086d00001234") == []
    assert run("slow_driver_for scsi:t-0x00") == []
    assert run("file_system slowfs") == ["crc", "sum_generic", "slowfs"]
    assert run("file_system ext4") == []
    # Nothing asks for it, so it is there from the start.
    assert run("load_always") == ["always"]
    assert run("load_always; load_always") == ["always"]
    assert run("insmod() { false; }; load x") == ["said", "cannot", "load", "the", "module", "x"]


def test_the_same_archive_whatever_the_order() -> None:
    one, two = Archive(5), Archive(5)
    one.file("a/b", b"1")
    one.directory("c")
    one.symlink("a/l", "b")
    two.symlink("a/l", "b")
    two.file("a/b", b"1")
    two.directory("c")
    assert one.pack() == two.pack()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=4), st.binary(max_size=20), min_size=1, max_size=5
    )
)
def test_archives_read_back(files: dict[str, bytes]) -> None:
    archive = Archive(7)
    for name, data in files.items():
        archive.file(f"d/{name}", data, 0o640)
    found = read_cpio(archive.pack())
    assert found.pop("d") == (0o040755, 7, b"")
    assert found == {f"d/{name}": (0o100640, 7, data) for name, data in files.items()}


def read_cpio(data: bytes) -> dict[str, tuple[int, int, bytes]]:
    """Read an archive by its documentation, independently of the writer."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, mtime, size, length = fields[1], fields[5], fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        start = -(-(at + 110 + length) // 4) * 4
        if name == "TRAILER!!!":
            assert len(data) % 512 == 0
            return found
        found[name] = (mode, mtime, data[start : start + size])
        at = -(-(start + size) // 4) * 4


def test_an_initrd_holds_what_it_should(root: Path) -> None:
    import zstandard

    packed = build_initrd(root, VERSION, ["sd_mod"], root / "busybox", 9, filesystems=["slowfs"])
    assert packed == build_initrd(
        root, VERSION, ["sd_mod"], root / "busybox", 9, filesystems=["slowfs"]
    )
    files = read_cpio(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    assert files["init"][0] == 0o100755
    assert files["bin/busybox"] == (0o100755, 9, STATIC)
    assert files["bin/mount"] == (0o120777, 9, b"busybox")
    modules = [n.rpartition("/")[2] for n in files if n.endswith(".ko")]
    expected = ["crc", "scsi_common", "scsi_mod", "sd_mod", "slowfs", "sum_generic"]
    assert modules == [f"{n}.ko" for n in expected]
    assert all(files[f"lib/tegu/modules/{n}"][2] == ELF for n in modules)


def test_without_zstd_it_is_gzip(monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip
    import sys

    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    packed = compress(b"data" * 1000)
    assert gzip.decompress(packed) == b"data" * 1000
    assert packed == compress(b"data" * 1000)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"#!/bin/sh\n", "is not a program"),
        (STATIC[:40], "is damaged"),
        (
            STATIC[:56] + b"\x01\x00" + STATIC[58:] + b"\x03\x00\x00\x00" + bytes(52),
            "is not a static program",
        ),
    ],
)
def test_only_a_static_busybox_will_do(root: Path, data: bytes, words: str) -> None:
    (root / "busybox").write_bytes(data)
    with pytest.raises(BuildError, match=words) as caught:
        build_initrd(root, VERSION, [], root / "busybox", 0)
    assert caught.value.hint == "install busybox-static"


def test_a_busybox_that_is_not_there(root: Path) -> None:
    with pytest.raises(BuildError, match="cannot read busybox"):
        build_initrd(root, VERSION, [], root / "none", 0)


def test_init_is_a_shell_script_without_fixed_waits() -> None:
    from importlib.resources import files

    text = files("tegu.boot").joinpath("init.sh").read_text()
    assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
    assert not re.search(r"^\s*sleep\b", text, re.MULTILINE)
