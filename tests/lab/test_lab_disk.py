"""Images are looked at before a machine is started on them, and never written to."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import MachineError, TeguError, UsageError
from tegu.lab.disk import inspect, make_overlay, parse_size

MIB = 1 << 20


@pytest.fixture
def img(need: Callable[[str], str]) -> Callable[..., None]:
    tool = need("qemu-img")

    def call(*words: object) -> None:
        subprocess.run([tool, *map(str, words)], check=True, capture_output=True)

    return call


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as f:
        f.truncate(8 * MIB)
        f.seek(510)
        f.write(b"\x55\xaa")
        f.seek(4 * MIB)
        f.write(b"data" * MIB)
    return path


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vpc"])
def test_disks_are_recognised(
    tmp_path: Path, raw: Path, img: Callable[..., None], kind: str
) -> None:
    path = tmp_path / f"disk.{kind}"
    if kind != "raw":
        options = ["-o", "force_size=on"] if kind == "vpc" else []
        img("convert", "-O", kind, *options, raw, path)
    disk = inspect(path)
    assert (disk.format, disk.size, disk.backing) == (kind, 8 * MIB, None)


def test_what_is_no_disk(tmp_path: Path, img: Callable[..., None]) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a disk\n" * 1000)
    for path, said in (
        (tmp_path / "none", "cannot read the image"),
        (tmp_path, "is a directory"),
        (text, "has no partition table"),
    ):
        with pytest.raises(UsageError, match=said):
            inspect(path)
    assert inspect(text, partitioned=False).format == "raw"
    old = tmp_path / "disk.qed"
    img("create", "-f", "qed", old, "1M")
    with pytest.raises(UsageError, match="format qed"):
        inspect(old)


def test_an_empty_file_is_no_disk(tmp_path: Path, img: Callable[..., None]) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="no partition table"):
        inspect(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["header", "version", "truncated", "table"])
def test_damaged_qcow2_is_refused(
    tmp_path: Path, raw: Path, img: Callable[..., None], damage: str
) -> None:
    path = tmp_path / "disk.qcow2"
    img("convert", "-O", "qcow2", raw, path)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[40:48] = b"\xff" * 8  # the offset of the L1 table
    elif damage == "version":
        data[4:8] = b"\0\0\0\x63"
    elif damage == "truncated":
        del data[len(data) // 2 :]
    else:
        start = int.from_bytes(data[40:48], "big")
        data[start : start + 8] = b"\x80\0\0\0\x7f\xff\0\0"
    path.write_bytes(data)
    with pytest.raises(MachineError, match="is damaged: ") as caught:
        inspect(path)
    assert "\n" not in caught.value.message


def test_a_layer_leaves_the_image_alone(
    tmp_path: Path, raw: Path, img: Callable[..., None], need: Callable[[str], str]
) -> None:
    before = hashlib.sha256(raw.read_bytes()).hexdigest()
    layer = make_overlay(inspect(raw), tmp_path / "layer.qcow2", size=64 * MIB)
    assert layer.size == inspect(layer.path, partitioned=False).size == 64 * MIB
    assert layer.backing == inspect(layer.path, partitioned=False).backing == raw.resolve()
    subprocess.run([need("qemu-io"), "-c", "write -P 7 0 1M", layer.path], check=True)
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == before


def test_a_disk_cannot_be_shrunk(tmp_path: Path, raw: Path, img: Callable[..., None]) -> None:
    with pytest.raises(UsageError, match="cannot be shrunk"):
        make_overlay(inspect(raw), tmp_path / "layer", size=MIB)
    assert not (tmp_path / "layer").exists()


def test_a_layer_that_cannot_be_made(tmp_path: Path, raw: Path, img: Callable[..., None]) -> None:
    with pytest.raises(MachineError, match="cannot make a layer over"):
        make_overlay(inspect(raw), tmp_path / "no" / "layer")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512k", 512 << 10), ("768M", 768 << 20), ("4G", 4 << 30), ("2TiB", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4 G", "1.5G", "G", "4X", "4GG", "9" * 20])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_size_is_read_or_refused(text: str) -> None:
    try:
        assert parse_size(text) > 0
    except TeguError as e:
        assert e.exit_code == 2
