"""The parts of a disk: tables, checksums changed in place, footers, sparse files, names."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.boot.slots import Places
from tegu.errors import BuildError, TeguError, UnsupportedError
from tegu.image.crc32c import Delta, crc32c
from tegu.image.disk import DiskSpec, fstab, kernel_cmdline, partitions_of, tree_files
from tegu.image.formats import content_sha256, copy_sparse, image_name
from tegu.image.immutable import slot_partitions
from tegu.image.partition import (
    ESP,
    GROW_FILE_SYSTEM,
    MIB,
    Partition,
    Table,
    place,
    read_table,
    regrow,
    write_table,
)
from tegu.image.programs import HostTools, tool_environment
from tegu.image.sparse import data_extents, put_into
from tegu.image.vhd import pin_footer, read_footer

ROOT = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")


def spec(**changes: object) -> DiskSpec:
    values: dict[str, object] = {
        "name": "tegu",
        "version": "26.11",
        "architecture": "x86-64",
        "size": 20 << 30,
        "filesystem": "ext4",
        "firmware": ("uefi", "bios"),
        "esp_size": 64 * MIB,
        "seed": "ab" * 16,
        "timestamp": 1_795_132_800,
        "cmdline": ("quiet",),
    }
    return DiskSpec(**(values | changes))  # type: ignore[arg-type]


# Partition tables


def disk_of(size: int = 64 * MIB) -> tuple[io.BytesIO, Table]:
    parts = place(
        [
            Partition("esp", ESP, UUID(int=1), 10 * MIB),
            Partition("root", ROOT, UUID(int=2), 0, GROW_FILE_SYSTEM),
        ],
        size,
    )
    f = io.BytesIO(bytes(size))
    table = Table(UUID(int=3), size, parts)
    write_table(f, table, code=b"\xfa" * 440)
    return f, table


def test_a_table_reads_back() -> None:
    f, table = disk_of()
    assert read_table(f) == table
    data = f.getvalue()
    assert data[:440] == b"\xfa" * 440
    assert data[510:512] == b"\x55\xaa"
    assert data[450] == 0xEE


def test_both_copies_have_right_checksums() -> None:
    f, _ = disk_of()
    data = f.getvalue()
    for header_at in (512, len(data) - 512):
        header = data[header_at : header_at + 92]
        assert header[:8] == b"EFI PART"
        assert zlib.crc32(header[:16] + bytes(4) + header[20:]) == int.from_bytes(
            header[16:20], "little"
        )
        here, other = struct.unpack_from("<QQ", header, 24)
        assert here * 512 == header_at
        assert data[other * 512 :][:8] == b"EFI PART"
        (entries_at,) = struct.unpack_from("<Q", header, 72)
        entries = data[entries_at * 512 :][: 128 * 128]
        assert zlib.crc32(entries) == int.from_bytes(header[88:92], "little")


def test_the_last_partition_takes_what_is_left() -> None:
    _, table = disk_of(64 * MIB)
    esp, root = table.partitions
    assert (esp.start, esp.size) == (MIB, 10 * MIB)
    assert (root.start, root.end) == (11 * MIB, 63 * MIB)


@pytest.mark.parametrize("size", [2 * MIB, 11 * MIB, 12 * MIB])
def test_partitions_that_do_not_fit(size: int) -> None:
    with pytest.raises(BuildError, match=rf"need \d+ MiB and the disk has {size // MIB} MiB"):
        disk_of(size)


def test_a_table_moves_when_its_disk_grows(tmp_path: Path) -> None:
    f, table = disk_of()
    path = tmp_path / "disk"
    path.write_bytes(f.getvalue())
    with path.open("r+b") as disk:
        grown = regrow(disk, 100 * MIB)
        assert grown.partitions == table.partitions
        assert read_table(disk) == grown
        data = path.read_bytes()
        with pytest.raises(BuildError, match="cannot become"):
            regrow(disk, 50 * MIB)
    assert len(data) == 100 * MIB
    assert data[:440] == b"\xfa" * 440
    assert data[-512:][:8] == b"EFI PART"
    assert b"EFI PART" not in data[1024:-512]


@pytest.mark.parametrize(
    ("place_", "words"),
    [
        (512, "has no GUID partition table"),
        (512 + 16, "header's checksum"),
        (512 + 24, "header's checksum"),
        (1024, "entries' checksum"),
    ],
)
def test_damaged_tables_are_refused(place_: int, words: str) -> None:
    f, _ = disk_of()
    f.seek(place_)
    byte = f.read(1)[0]
    f.seek(place_)
    f.write(bytes([byte ^ 1]))
    with pytest.raises(BuildError, match=words):
        read_table(f)


@settings(deadline=None)
@given(st.binary(max_size=2048), st.integers(0, 4096))
def test_any_bytes_are_read_or_refused(data: bytes, at: int) -> None:
    f, _ = disk_of(16 * MIB)
    f.seek(at)
    f.write(data)
    try:
        read_table(f)
    except BuildError:
        return
    try:
        read_table(io.BytesIO(data))
    except BuildError:
        return


# CRC-32C


def test_crc32c_of_the_standard_example() -> None:
    # RFC 3720, B.4: 32 bytes of zeros.
    assert crc32c(bytes(32)) ^ 0xFFFFFFFF == 0x8A9136AA
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


@settings(deadline=None)
@given(st.binary(min_size=64, max_size=64), st.integers(0, 56), st.binary(min_size=8, max_size=8))
def test_a_changed_checksum_is_that_of_the_changed_data(old: bytes, at: int, new: bytes) -> None:
    delta = Delta(64, range(64))
    changed = old[:at] + new + old[at + 8 :]
    assert crc32c(old) ^ delta.change(at, old[at : at + 8], new) == crc32c(changed)


def test_positions_outside_the_message_are_refused() -> None:
    for positions in ([], [-1], [64]):
        with pytest.raises(ValueError, match="outside"):
            Delta(64, positions)


# VHD


def vhd(size: int = 3 * MIB, kind: int = 2) -> bytes:
    footer = bytearray(512)
    footer[:8] = b"conectix"
    struct.pack_into(">QQ", footer, 40, size, size)
    struct.pack_into(">I", footer, 60, kind)
    footer[68:84] = os.urandom(16)
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    body = bytes(size) if kind == 2 else bytes(footer) + bytes(8192)
    return body + bytes(footer)


@pytest.mark.parametrize("kind", [2, 3])
def test_footers_become_the_same(tmp_path: Path, kind: int) -> None:
    files = []
    for name in ("a", "b"):
        path = tmp_path / name
        path.write_bytes(vhd(kind=kind))
        footer = pin_footer(path, UUID(int=7), 1_700_000_000)
        assert (footer.kind, footer.size, footer.uuid) == (kind, 3 * MIB, UUID(int=7))
        files.append(path.read_bytes())
    assert files[0] == files[1]
    (stamp,) = struct.unpack_from(">I", files[0], len(files[0]) - 512 + 24)
    assert stamp == 1_700_000_000 - 946_684_800


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[:-512], "has no footer"),
        (lambda d: d[:-100], "has no footer"),
        (lambda d: d[:-20] + b"x" + d[-19:], "checksum"),
        (lambda d: d[MIB:], "cut short"),
    ],
)
def test_damaged_vhds_are_refused(tmp_path: Path, change: object, words: str) -> None:
    path = tmp_path / "x.vhd"
    path.write_bytes(change(vhd()))  # type: ignore[operator]
    with pytest.raises(BuildError, match=words):
        read_footer(path)


@settings(deadline=None)
@given(data=st.binary(max_size=1200))
def test_any_file_is_a_vhd_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("vhd") / "x"
    path.write_bytes(data)
    with pytest.raises(BuildError):
        read_footer(path)


# Sparse files


def sparse(path: Path) -> bytes:
    with path.open("wb") as f:
        f.truncate(10 * MIB)
        f.seek(3 * MIB)
        f.write(b"a" * 70000)
        f.seek(9 * MIB + 5)
        f.write(b"b")
    return path.read_bytes()


def test_copies_keep_their_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    data = sparse(source)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copy_sparse(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_blocks < 1000


def test_one_file_goes_into_another(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    data = sparse(source)
    with target.open("wb") as f:
        f.truncate(30 * MIB)
    put_into(source, target, 5 * MIB)
    assert target.read_bytes() == bytes(5 * MIB) + data + bytes(15 * MIB)
    assert not source.exists()


def test_only_what_is_to_be_kept_goes_along(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    sparse(source)
    with target.open("wb") as f:
        f.truncate(10 * MIB)
    put_into(source, target, 0, [(0, MIB), (3 * MIB + 10, 3 * MIB + 20)])
    found = target.read_bytes()
    assert found.strip(b"\0") == b"a" * 10
    assert found.index(b"a") == 3 * MIB + 10


def test_a_digest_does_not_see_where_the_holes_are(tmp_path: Path) -> None:
    data = sparse(tmp_path / "sparse")
    (tmp_path / "full").write_bytes(data)
    assert content_sha256(tmp_path / "sparse") == content_sha256(tmp_path / "full")
    (tmp_path / "moved").write_bytes(data[1:] + b"\0")
    assert content_sha256(tmp_path / "moved") != content_sha256(tmp_path / "full")
    (tmp_path / "longer").write_bytes(data + bytes(MIB))
    assert content_sha256(tmp_path / "longer") != content_sha256(tmp_path / "full")


def test_extents_of_a_file_without_holes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 5000)
    with (tmp_path / "f").open("rb") as f:
        assert list(data_extents(f.fileno(), 5000)) == [(0, 5000)]
        assert list(data_extents(f.fileno(), 0)) == []


# Programs of this machine


def test_a_program_that_is_not_there_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(UnsupportedError, match=r"mkfs\.erofs is not installed") as caught:
        HostTools().run(["mkfs.erofs", "-V"])
    assert caught.value.hint == "install the package erofs-utils"


def test_programs_get_one_locale_and_one_date(tmp_path: Path) -> None:
    tools = HostTools(tmp_path)
    done = tools.run(["sh", "-c", "echo $TZ $LC_ALL $SOURCE_DATE_EPOCH"], env=tool_environment(7))
    assert done.stdout == "UTC C.UTF-8 7\n"
    assert tools.path("usr/bin/x") == tmp_path / "usr/bin/x"


# What a disk is to be


def test_identifiers_follow_from_the_seed() -> None:
    assert spec().uuid("a") == spec().uuid("a")
    assert spec().uuid("a") != spec().uuid("b")
    assert spec().uuid("a") != spec(seed="cd" * 16).uuid("a")
    assert spec().uuid("a").version == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filesystem": "ntfs"}, "the root file system ntfs"),
        ({"firmware": ()}, "firmware"),
        ({"firmware": ("coreboot",)}, "firmware"),
        ({"initrd": "dracut"}, "initrd"),
        ({"seed": "xyz"}, "seed"),
        ({"seed": ""}, "seed"),
        ({"cmdline": ("two words",)}, "'two words'"),
        ({"cmdline": ("line\nbreak",)}, "line"),
        ({"architecture": "sparc"}, "sparc"),
    ],
)
def test_specs_that_make_no_sense(changes: dict[str, object], words: str) -> None:
    with pytest.raises(TeguError, match=words):
        spec(**changes)


def test_arm_has_no_bios() -> None:
    with pytest.raises(UnsupportedError, match="legacy BIOS boot on arm64"):
        spec(architecture="arm64")
    parts = partitions_of(spec(architecture="arm64", firmware=("uefi",)), 0)
    assert [p.label for p in parts] == ["esp", "root"]
    assert str(parts[1].type) == "b921b045-1df0-41c3-af44-4c6f280d3fae"


def test_the_command_line_mounts_the_root_as_it_shall_be() -> None:
    line = kernel_cmdline(spec())
    assert line == f"root=PARTUUID={spec().root_partuuid} rootfstype=ext4 rw quiet"
    assert "rootfstype=erofs ro tegu.overlay" in kernel_cmdline(spec(filesystem="erofs"))


def slots(**changes: object) -> DiskSpec:
    layout = {"layout": "immutable", "slot_size": 2 << 30, "filesystem": "erofs"}
    return spec(**(layout | {"firmware": ("uefi",)} | changes))


def test_slots_have_a_place_each_and_var_the_rest() -> None:
    parts = place(slot_partitions(slots(), 0), 20 << 30)
    assert [p.label for p in parts] == ["esp", "root-a", "tree-a", "root-b", "tree-b", "var"]
    assert [p.size >> 20 for p in parts] == [64, 2048, 17, 2048, 17, 20480 - 2 - 64 - 2 * 2065]
    assert str(parts[1].type) == "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
    assert str(parts[2].type) == "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
    assert parts[-1].attributes == GROW_FILE_SYSTEM
    places = slots().places
    assert str(parts[1].uuid) == places.slots[0][0]
    assert str(parts[4].uuid) == places.slots[1][1]
    # The next version's slot fits the disk that this one made.
    assert slots(version="27.1").places.slots == places.slots


def test_a_slot_that_does_not_come_up_starts_again() -> None:
    line = kernel_cmdline(slots())
    assert f"tegu.data={slots().places.data} ro panic=10 quiet" in line
    assert "root=" not in line
    assert kernel_cmdline(slots(cmdline=("panic=1",))).endswith(" ro panic=1")


def test_a_disk_of_slots_says_where_they_are() -> None:
    files = tree_files(slots())
    assert sorted(files) == ["etc/fstab", "usr/lib/tegu/slots.json"]
    assert Places.parse(files["usr/lib/tegu/slots.json"]) == slots().places
    assert "X-mount.mkdir" not in files["etc/fstab"]


@pytest.mark.parametrize(
    "changes",
    [{"filesystem": "ext4"}, {"firmware": ("uefi", "bios")}, {"slot_size": 0}],
)
def test_what_cannot_be_a_slot_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BuildError, match="slots are erofs"):
        slots(**changes)


def test_nothing_is_mounted_at_boot_that_nobody_asked_for() -> None:
    lines = [line for line in fstab(spec()).splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    device, where, kind, options, dump, check = lines[0].split()
    assert (device, where, kind) == (f"PARTUUID={spec().esp_partuuid}", "/efi", "vfat")
    assert "noauto" in options.split(",")
    assert (dump, check) == ("0", "0")


def test_the_host_half_reads_what_the_works_write(tmp_path: Path) -> None:
    from tegu.host import load_config

    made = spec(modules=("dm_verity",))
    for name, text in tree_files(made).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    config = load_config(tmp_path)
    assert config.cmdline == kernel_cmdline(made)
    assert config.esp == str(made.esp_partuuid)
    assert config.modules == ("dm_verity",)
    assert (config.name, config.filesystem, config.keep) == ("tegu", "ext4", 2)


@pytest.mark.parametrize(
    ("format_name", "changes", "name"),
    [
        ("qcow2", {}, "tegu_26.11_x64_20G_20261120.qcow2"),
        ("vhd", {"size": 1500 * MIB}, "tegu_26.11_x64_1500M_20261120.vhd"),
        ("vhd-fixed", {}, "tegu_26.11_x64_20G_20261120_fixed.vhd"),
        ("raw", {"size": None}, "tegu_26.11_x64_minimal_20261120.raw"),
        ("tar", {}, "tegu_26.11_x64_20261120.tar"),
        ("oci", {"architecture": "arm64", "firmware": ("uefi",)}, "tegu_26.11_arm64_20261120.oci"),
    ],
)
def test_names(format_name: str, changes: dict[str, object], name: str) -> None:
    assert image_name(spec(**changes), format_name) == name
