"""Unified images, the ESP's layout, GRUB's pieces and menu."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pefile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.boot import (
    ARCHES,
    arch_of,
    build_uki,
    entry_of,
    grub_config,
    kernel_path,
    loader_files,
    newest_first,
)
from tegu.boot.grub import boot_code, early_config, make_core, place_core
from tegu.boot.loader import Entry
from tegu.boot.uki import read_sections, section_data
from tegu.errors import BuildError, UnsupportedError


def program(*, nx: bool = True, extra: int = 400, signed: bool = False) -> bytes:
    """Return a small PE32+ program with one section and `extra` bytes of room in its header."""
    header = bytearray(0x80)
    header[:2] = b"MZ"
    struct.pack_into("<I", header, 0x3C, 0x80)
    optional = bytearray(112 + 16 * 8)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 32, 4096, 512)
    struct.pack_into("<I", optional, 56, 8192)
    struct.pack_into("<I", optional, 16, 4096)
    struct.pack_into("<H", optional, 68, 10)
    struct.pack_into("<H", optional, 70, 0x100 if nx else 0)
    struct.pack_into("<I", optional, 108, 16)
    if signed:
        struct.pack_into("<II", optional, 112 + 32, 4096, 8)
    coff = struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, len(optional), 0x22)
    size = 0x80 + 4 + len(coff) + len(optional) + 40 + extra
    size = -(-size // 512) * 512
    struct.pack_into("<I", optional, 60, size)
    section = struct.pack("<8sIIIIIIHHI", b".text", 100, 4096, 512, size, 0, 0, 0, 0, 0x60000020)
    whole = bytes(header) + b"PE\0\0" + coff + bytes(optional) + section
    return whole.ljust(size, b"\0") + b"\x90" * 512


def make(**changes: object) -> bytes:
    values: dict[str, object] = {
        "stub": program(),
        "kernel": program(extra=0) + b"kernel",
        "cmdline": "root=PARTUUID=1 quiet",
        "os_release": 'ID=x\nPRETTY_NAME="X 1"\n',
        "uname": "6.1.2",
        "initrd": b"initrd" * 1000,
    }
    return build_uki(**(values | changes))  # type: ignore[arg-type]


def test_pefile_reads_what_was_put_in() -> None:
    image = pefile.PE(data=make(), fast_load=True)
    assert image.get_warnings() == []
    found = {s.Name.rstrip(b"\0").decode(): s for s in image.sections}
    assert list(found) == [".text", ".osrel", ".cmdline", ".uname", ".initrd", ".linux"]
    for section in image.sections:
        assert section.VirtualAddress % 4096 == 0
        assert section.PointerToRawData % 512 == 0
    assert found[".cmdline"].get_data()[: found[".cmdline"].Misc_VirtualSize] == (
        b"root=PARTUUID=1 quiet"
    )
    last = image.sections[-1]
    end = last.VirtualAddress + last.Misc_VirtualSize
    assert end <= image.OPTIONAL_HEADER.SizeOfImage < end + 4096


def test_the_same_input_gives_the_same_image() -> None:
    assert make() == make()
    assert make(cmdline="other") != make()


def test_without_an_initrd_there_is_no_such_section() -> None:
    assert ".initrd" not in read_sections(make(initrd=None))


def test_a_kernel_that_cannot_do_nx_takes_the_flag_from_the_stub() -> None:
    flags = [
        pefile.PE(data=make(kernel=program(nx=nx)), fast_load=True).OPTIONAL_HEADER
        for nx in (True, False)
    ]
    assert [bool(f.DllCharacteristics & 0x100) for f in flags] == [True, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stub": b"no"}, "the UEFI stub is cut short"),
        ({"stub": bytes(4096)}, "the UEFI stub is not a PE program"),
        ({"stub": program()[:-300]}, "the UEFI stub is cut short"),
        ({"stub": program(signed=True)}, "signed"),
        ({"stub": make()}, "already holds a kernel"),
        ({"stub": program(extra=0)}, "no room in its header"),
        ({"kernel": b"\x1f\x8b" + bytes(1000)}, r"the kernel 6\.1\.2 is not a PE program"),
    ],
)
def test_what_is_no_stub_or_kernel_is_refused(changes: dict[str, bytes], words: str) -> None:
    with pytest.raises(BuildError, match=words):
        make(**changes)


@settings(deadline=None)
@given(st.binary(max_size=700))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for raw in (data, program()[: len(data)] + data):
        with contextlib.suppress(BuildError):
            read_sections(raw)


def test_an_entry_knows_where_kernel_and_initrd_are() -> None:
    image = make()
    entry = entry_of("EFI/Linux/x-6.1.2.efi", image)
    assert entry.version == "6.1.2"
    assert entry.title == "X 1 (6.1.2)"
    assert entry.cmdline == "root=PARTUUID=1 quiet"
    start, size = entry.kernel
    assert image[start : start + size] == section_data(image, ".linux")
    assert entry.initrd is not None
    start, size = entry.initrd
    assert image[start : start + size] == b"initrd" * 1000


def test_what_is_no_unified_image_has_no_entry() -> None:
    with pytest.raises(BuildError, match="is not a unified kernel image"):
        entry_of("EFI/Linux/x.efi", program())


def entry(version: str, **changes: object) -> Entry:
    values: dict[str, object] = {
        "version": version,
        "path": f"EFI/Linux/x-{version}.efi",
        "title": f"It's {version}",
        "cmdline": "root=PARTUUID=1 quiet",
        "kernel": (1024, 1025),
        "initrd": (512, 512),
    }
    return Entry(**(values | changes))  # type: ignore[arg-type]


def test_grub_starts_the_newest_from_inside_its_image() -> None:
    text = grub_config([entry("6.9.1"), entry("6.12.0", initrd=None)])
    assert text.index("6.12.0") < text.index("6.9.1")
    assert "  linux (uki)2+3 'root=PARTUUID=1' 'quiet'\n" in text
    assert "  initrd (uki)1+1\n" in text
    assert text.count("initrd (uki)") == 1
    assert "menuentry 'It'\\''s 6.12.0' {" in text


def test_a_command_line_cannot_leave_its_quotes() -> None:
    text = grub_config([entry("1", cmdline="a='b;reboot' $x")])
    assert r"'a='\''b;reboot'\'''" in text
    assert "'$x'" in text


def test_versions_are_ordered_by_number() -> None:
    versions = ["6.9.1", "6.12.0+deb13", "6.12~rc1", "6.12", "6.12.10+deb13", "6.12.9+deb13"]
    assert newest_first(versions) == [
        "6.12.10+deb13",
        "6.12.9+deb13",
        "6.12.0+deb13",
        "6.12",
        "6.12~rc1",
        "6.9.1",
    ]


@settings(deadline=None)
@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_versions_have_one_order(versions: list[str]) -> None:
    assert newest_first(versions) == newest_first(newest_first(versions))


def test_the_esp_has_a_loader_for_firmware_without_entries(tmp_path: Path) -> None:
    arch = arch_of("x86-64")
    path = tmp_path / arch.boot_loader
    path.parent.mkdir(parents=True)
    path.write_bytes(program())
    files = loader_files(arch, tmp_path)
    assert sorted(files) == [
        "EFI/BOOT/BOOTX64.EFI",
        "EFI/systemd/systemd-bootx64.efi",
        "loader/loader.conf",
    ]
    assert b"timeout 0\n" in files["loader/loader.conf"]
    assert b"editor no\n" in files["loader/loader.conf"]
    assert not any("seed" in name for name in files)
    path.write_bytes(b"damaged")
    with pytest.raises(BuildError):
        loader_files(arch, tmp_path)
    path.unlink()
    with pytest.raises(BuildError, match="cannot read the boot loader"):
        loader_files(arch, tmp_path)


def test_names_on_the_esp_follow_the_architecture() -> None:
    assert ARCHES["arm64"].removable == "EFI/BOOT/BOOTAA64.EFI"
    assert kernel_path("tegu", "6.1") == "EFI/Linux/tegu-6.1.efi"
    with pytest.raises(UnsupportedError, match="riscv64"):
        arch_of("riscv64")


def boot_img() -> bytearray:
    image = bytearray(512)
    image[:3] = b"\xeb\x63\x90"
    struct.pack_into("<Q", image, 0x5C, 1)
    image[0x64] = 0xFF
    image[0x66:0x68] = b"\xeb\x05"
    image[510:] = b"\x55\xaa"
    return image


def test_the_first_sector_names_the_second_stage() -> None:
    code = boot_code(bytes(boot_img()), 2048)
    assert len(code) == 440
    assert struct.unpack_from("<Q", code, 0x5C)[0] == 2048
    assert code[0x66:0x68] == b"\x90\x90"


def test_a_first_sector_of_another_make_is_refused() -> None:
    for place, value in ((510, 0), (0x5C, 9), (0x64, 0)):
        image = boot_img()
        image[place] = value
        with pytest.raises(BuildError):
            boot_code(bytes(image), 2048)
    with pytest.raises(BuildError, match="damaged"):
        boot_code(bytes(511), 2048)


def core_img(size: int = 3000) -> bytearray:
    core = bytearray(size)
    struct.pack_into("<QHH", core, 500, 2, 0, 0x820)
    return core


def test_the_second_stage_has_one_block_list() -> None:
    placed = place_core(bytes(core_img()), 2048, 1 << 20)
    assert len(placed) == 3072
    assert struct.unpack_from("<QHH", placed, 500) == (2049, 5, 0x820)


@pytest.mark.parametrize(
    ("core", "room", "words"),
    [
        (core_img(), 2000, "does not fit"),
        (core_img(512), 1 << 20, "too short"),
        (bytearray(3000), 1 << 20, "not known here"),
    ],
)
def test_a_second_stage_that_cannot_be_placed(core: bytearray, room: int, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        place_core(bytes(core), 2048, room)


def test_the_second_stage_looks_for_the_esp(tmp_path: Path) -> None:
    assert "search.fs_uuid 0012-ABCD root" in early_config(0x0012ABCD)
    with pytest.raises(UnsupportedError, match="arm64"):
        make_core(lambda argv, place: None, arch_of("arm64"), tmp_path, "")
    with pytest.raises(BuildError, match=r"no core\.img"):
        make_core(lambda argv, place: None, arch_of("x86-64"), tmp_path, "")
    assert list(tmp_path.iterdir()) == []
