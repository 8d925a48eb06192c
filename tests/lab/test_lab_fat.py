"""The seed's volume, read back by programs that we did not write, and by a reader of our own."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.lab.fat import CAPACITY, fat_volume

NAMES = st.from_regex(r"[a-zA-Z][a-zA-Z0-9._-]{0,40}", fullmatch=True).filter(
    lambda n: not n.endswith(".")
)
FILES = st.dictionaries(NAMES, st.binary(max_size=9000), max_size=8)


def read_volume(volume: bytes) -> tuple[str, dict[str, bytes]]:
    """A FAT12 reader, written from the format's description and not from the writer."""
    sector, per_cluster, reserved, fats, entries = struct.unpack_from("<HBHBH", volume, 11)
    (fat_sectors,) = struct.unpack_from("<H", volume, 22)
    fat = volume[reserved * sector : (reserved + fat_sectors) * sector]
    root = (reserved + fats * fat_sectors) * sector
    data = root + entries * 32
    size = sector * per_cluster

    def following(cluster: int) -> int:
        value = int.from_bytes(fat[cluster * 3 // 2 : cluster * 3 // 2 + 2], "little")
        return value >> 4 if cluster % 2 else value & 0xFFF

    label, files, long_name = "", {}, ""
    for at in range(root, data, 32):
        entry = volume[at : at + 32]
        if entry[0] == 0:
            break
        if entry[11] == 0x0F:
            part = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le")
            long_name = part.split("\0")[0] + long_name
            continue
        if entry[11] & 0x08:
            label = entry[:11].decode().rstrip()
            continue
        cluster, length = struct.unpack_from("<HI", entry, 26)
        content = b""
        while length and cluster < 0xFF8:
            start = data + (cluster - 2) * size
            content += volume[start : start + size]
            cluster = following(cluster)
        files[long_name] = content[:length]
        long_name = ""
    return label, files


@given(FILES)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(files: dict[str, bytes]) -> None:
    volume = fat_volume(files, label="CIDATA", serial=7)
    assert read_volume(volume) == ("CIDATA", files)
    assert fat_volume(dict(reversed(files.items())), label="CIDATA", serial=7) == volume


def test_a_full_volume_is_read_back() -> None:
    files = {"big": bytes(range(256)) * (CAPACITY // 256)}
    assert read_volume(fat_volume(files, label="X", serial=0))[1] == files


def test_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        fat_volume({"big": b"x" * (CAPACITY + 1)}, label="X", serial=0)
    with pytest.raises(ValueError, match="too many files"):
        fat_volume({f"name-{i}": b"" for i in range(64)}, label="X", serial=0)


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a:b", "a\nb", "x" * 256])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="not a file name"):
        fat_volume({name: b""}, label="X", serial=0)


def test_others_find_it_sound(tmp_path: Path, need: Callable[[str], str]) -> None:
    fsck, mtype, blkid = need("fsck.vfat"), need("mtype"), need("blkid")
    path = tmp_path / "seed.img"
    files = {"user-data": b"#cloud-config\n", "meta-data": b"m" * 70000, "empty": b""}
    path.write_bytes(fat_volume(files, label="CIDATA", serial=0x12345678))
    checked = subprocess.run([fsck, "-n", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    for name, content in files.items():
        read = subprocess.run([mtype, "-i", path, f"::{name}"], capture_output=True, check=True)
        assert read.stdout == content
    said = subprocess.run([blkid, "-p", path], capture_output=True, text=True, check=True).stdout
    assert 'LABEL="CIDATA"' in said
    assert 'UUID="1234-5678"' in said
    assert 'TYPE="vfat"' in said
