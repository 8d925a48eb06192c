"""Hash trees of dm-verity, names of boot files, and the description of a slot image."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import struct
from dataclasses import asdict, replace
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.boot.cpio import Archive
from tegu.boot.programs import add_program, needs
from tegu.boot.slots import (
    BootName,
    Places,
    SlotFile,
    SlotImage,
    slot_osrel,
    verity_of,
    verity_words,
)
from tegu.boot.verity import BLOCK, HEAD, Verity, hash_tree, top_matches, tree_size
from tegu.errors import BuildError, VerifyError
from tegu.process import CommandError, run


def some(blocks: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(blocks * BLOCK)


@pytest.mark.parametrize("blocks", [2, 127, 128, 129, 1000])
def test_veritysetup_agrees(tmp_path: Path, blocks: int) -> None:
    if shutil.which("veritysetup") is None:
        pytest.skip("veritysetup is not installed")
    data = some(blocks)
    salt = bytes(range(16))
    verity, tree = hash_tree(io.BytesIO(data), len(data), salt)
    assert len(tree) == tree_size(len(data))
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "ours").write_bytes(tree)
    options = [f"--salt={salt.hex()}", f"--uuid={UUID(bytes=tree[16:32])}"]
    files = [tmp_path / "data", tmp_path / "theirs"]
    (tmp_path / "theirs").touch()
    said = run(["veritysetup", "format", *options, *files]).stdout
    assert f"Root hash:      \t{verity.root_hash}" in said
    assert (tmp_path / "theirs").read_bytes()[: len(tree)] == tree
    run(["veritysetup", "verify", files[0], tmp_path / "ours", verity.root_hash])
    damaged = bytearray(data)
    damaged[-1] ^= 1
    (tmp_path / "data").write_bytes(damaged)
    with pytest.raises(CommandError):
        run(["veritysetup", "verify", files[0], tmp_path / "ours", verity.root_hash])


def test_the_top_of_a_tree_tells_whose_it_is() -> None:
    data = some(300)
    verity, tree = hash_tree(io.BytesIO(data), len(data), b"salt")
    assert top_matches(tree[:HEAD], verity)
    assert not top_matches(bytes(HEAD), verity)
    assert not top_matches(tree[: HEAD - 1], verity)
    other, _ = hash_tree(io.BytesIO(some(300, 2)), len(data), b"salt")
    assert not top_matches(tree[:HEAD], other)


@pytest.mark.parametrize(("size", "salt"), [(BLOCK, b"x"), (BLOCK * 2 + 1, b"x"), (BLOCK * 2, b"")])
def test_what_has_no_hash_tree_is_refused(size: int, salt: bytes) -> None:
    with pytest.raises(BuildError):
        hash_tree(io.BytesIO(bytes(size)), size, salt)
    with pytest.raises(BuildError, match="shorter"):
        hash_tree(io.BytesIO(bytes(BLOCK)), BLOCK * 2, b"x")


def image(**changes: object) -> SlotImage:
    size = 300 * BLOCK
    values: dict[str, object] = {
        "name": "tegu",
        "version": "26.12",
        "architecture": "x86-64",
        "created": 1_795_132_800,
        "verity": Verity("ab" * 32, "cd" * 16, 300),
        "root": SlotFile("root.erofs", size, "01" * 32),
        "tree": SlotFile("root.verity", tree_size(size), "02" * 32),
        "boot": SlotFile("boot.efi", 1000, "03" * 32),
        "packages": {"systemd": "257-1"},
    }
    return SlotImage(**(values | changes))  # type: ignore[arg-type]


def test_a_description_reads_back() -> None:
    made = image()
    assert SlotImage.parse(made.dump()) == made
    assert SlotImage.parse(made.dump()).dump() == made.dump()


@pytest.mark.parametrize(
    "wrong",
    [
        {"root": SlotFile("../../etc/passwd", 300 * BLOCK, "01" * 32)},
        {"root": SlotFile("root.erofs", 299 * BLOCK, "01" * 32)},
        {"tree": SlotFile("root.verity", 5, "01" * 32)},
        {"boot": SlotFile("boot.efi", 0, "01" * 32)},
        {"boot": SlotFile("boot.efi", 1 << 50, "01" * 32)},
        {"boot": SlotFile("boot.efi", 10, "01" * 31)},
        {"verity": Verity("AB" * 32, "cd" * 16, 300)},
        {"verity": Verity("ab" * 32, "cd tegu.slots=x", 300)},
        {"verity": Verity("ab" * 32, "cd", 0)},
        {"name": "../x"},
        {"version": "1/2"},
        {"created": -1},
        {"created": True},
        {"packages": {"a": 1}},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(VerifyError, match="describes no slot image"):
        SlotImage.parse(image(**wrong).dump())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(asdict(image()))), JSON, st.booleans())
def test_any_description_is_read_or_refused(key: str, value: object, gone: bool) -> None:
    raw = json.loads(image().dump())
    if gone:
        del raw[key]
    else:
        raw[key] = value
    with contextlib.suppress(VerifyError):
        SlotImage.parse(json.dumps(raw))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(VerifyError):
        SlotImage.parse(data)


def test_the_command_line_names_root_and_disk() -> None:
    verity = Verity("ab" * 32, "cd" * 16, 300)
    assert verity_of(" ".join(["quiet", *verity_words(verity), "ro"])) == verity
    assert verity_of("quiet ro") is None
    guids = [str(UUID(int=i)) for i in range(1, 7)]
    places = Places(
        "tegu",
        "26.11",
        "x86-64",
        5,
        guids[0],
        guids[1],
        ((guids[2], guids[3]), (guids[4], guids[5])),
    )
    assert Places.parse(places.dump()) == places
    assert places.words()[0] == f"tegu.slots={guids[2]}:{guids[3]},{guids[4]}:{guids[5]}"
    for bad in ("", "[]", "{}", places.dump().replace(guids[0], "/dev/sda")):
        with pytest.raises(VerifyError):
            Places.parse(bad)


def test_names_of_boot_files_count_as_systemd_boot_does() -> None:
    name = BootName("tegu", 7, "26.12", 1)
    assert name.path == "EFI/Linux/tegu-7-26.12+1-0.efi"
    assert BootName.parse("tegu-7-26.12+1-0.efi", "tegu") == name
    assert BootName.parse("tegu-7-26.12+0-1.efi", "tegu") == replace(name, left=0, done=1)
    assert BootName.parse("tegu-7-26.12.efi", "tegu") == name.counted(None)
    assert BootName.parse("tegu-7-26.12+2.efi", "tegu") == name.counted(2)
    for other in ("tegu-x-26.12.efi", "other-7-26.12.efi", "tegu-7-26.12.efi.new", "tegu-7.efi"):
        assert BootName.parse(other, "tegu") is None


@given(
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    st.integers(0, 10**9 - 1),
    st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.+~-]{0,20}", fullmatch=True),
    st.none() | st.integers(0, 99),
)
def test_every_name_is_recognised(name: str, generation: int, version: str, left: int) -> None:
    made = BootName(name, generation, version, left)
    found = BootName.parse(Path(made.path).name, name)
    assert found is not None
    assert (found.generation, found.left, found.path) == (generation, left, made.path)


def test_no_version_is_left_to_sort_by() -> None:
    text = 'NAME=x\nID=tegu\nVERSION_ID="1"\nVERSION="1 (a)"\nIMAGE_VERSION=2\nPRETTY_NAME="T 1"\n'
    assert slot_osrel(text) == 'NAME=x\nID=tegu\nPRETTY_NAME="T 1"\n'


# Programs for the initrd


def test_a_program_comes_with_its_libraries() -> None:
    archive = Archive(0)
    add_program(archive, Path("/"), "mount", package="mount")
    files = set(archive.entries)
    assert "bin/mount" in files
    interpreter, wanted = needs(archive.entries["bin/mount"][1], "mount")
    assert interpreter.lstrip("/") in files
    assert wanted
    assert {f"lib/{name}" for name in wanted if "ld-linux" not in name} <= files


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(BuildError, match="no-such-program"):
        add_program(Archive(0), Path("/"), "no-such-program", package="none")


@given(st.binary(max_size=300))
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(BuildError):
        needs(data, "it")


@settings(max_examples=300)
@given(st.integers(0, 4000), st.integers(0, 255))
def test_a_damaged_program_never_leads_astray(at: int, value: int) -> None:
    data = bytearray(Path("/usr/bin/mount").read_bytes())
    data[at] = value
    with contextlib.suppress(BuildError):
        needs(bytes(data), "mount")


def test_a_cut_program_is_refused() -> None:
    data = Path("/usr/bin/mount").read_bytes()
    with pytest.raises(BuildError):
        needs(data[:100], "mount")
    assert struct.unpack_from("<H", data, 54)[0] == 56
