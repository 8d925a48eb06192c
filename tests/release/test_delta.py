"""Deltas made and applied: odd trees, the same bytes each time, by way of a signed release."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tegu.cli import main
from tegu.errors import UnsupportedError, UpgradeError, VerifyError
from tegu.host.delta import Description, digest_of
from tegu.host.delta.table import parse_table, read_table
from tegu.host.upgrade.delta import apply
from tegu.release import Number
from tegu.release.client import Client
from tegu.release.delta import make_delta
from tegu.release.delta.ancestors import Ancestors
from tegu.release.manifest import File
from tegu.release.signing import publish, sign
from tegu.release.workshop import Workshop

from .conftest import small_release

pytest.importorskip("bsdiff4", reason="bsdiff4 is not installed: pip install 'tegu[release]'")

ROOT = os.geteuid() == 0


def there_and_back(tmp_path: Path, old: Path, new: Path) -> int:
    """Make a delta, apply it, hold that the tree is the new one in all; returns the size."""
    delta, target = tmp_path / "a.delta", tmp_path / "target"
    made = make_delta(old, new, delta)
    applied = apply(old, delta, target)
    assert applied == digest_of(target) == made.new
    assert read_table(target) == read_table(new)
    size = delta.stat().st_size
    shutil.rmtree(target)
    delta.unlink()
    return size


def odd_tree(place: Path, *, later: bool) -> Path:
    """Make a tree of all that a file system can hold; the later one differs in everything."""
    text = os.fsencode(place)
    place.mkdir()
    (place / "empty").touch()
    (place / "directory/deep/er").mkdir(parents=True)
    (place / "to be removed or added").mkdir()
    with open(text + b"/not utf-8 \xff\xfe\n=,", "wb") as f:  # noqa: PTH123
        f.write(b"later" if later else b"before")
    with (place / "sparse").open("wb") as f:
        f.seek(3 << 20)
        f.write(b"end" if later else b"other end")
        f.truncate(5 << 20)
    (place / "program").write_bytes(random.Random(4).randbytes(70_000) + bytes([later]) * 9)
    (place / "program").chmod(0o4755 if later else 0o2755)
    (place / "libfoo.so.1.2" if not later else place / "libfoo.so.1.3").write_bytes(
        random.Random(5).randbytes(50_000) + (b"later" if later else b"")
    )
    os.link(place / "program", place / "directory/the same program")
    if later:
        os.link(place / "empty", place / "another empty")
    (place / "link").symlink_to("../elsewhere" if later else "nowhere")
    os.symlink(b"\xff\n", text + b"/directory/odd link")  # noqa: PTH211 - bytes
    os.mkfifo(place / "pipe", 0o640 if later else 0o600)
    if ROOT:
        os.mknod(place / "device", 0o20600, os.makedev(1, 3 if later else 5))
        os.chown(place / "program", 12, 34)
        os.chown(place / "link", 56, 78, follow_symlinks=False)
    # Its owner's change took the bits away; give them back.
    (place / "program").chmod(0o4755 if later else 0o2755)
    with suppress(OSError):  # a file system without: the rest is tested all the same
        os.setxattr(place / "empty", "user.tegu", b"\0later\xff" if later else b"")
    os.utime(place / "directory", ns=(1, 2_000_000_001 if later else 1_999_999_999))
    os.utime(place / "link", ns=(1, 3_000_000_000), follow_symlinks=False)
    if later:
        (place / "to be removed or added").rmdir()
        (place / "to be removed or added").write_text("a file now")
    return place


def test_a_tree_of_all_that_there_can_be(tmp_path: Path) -> None:
    old = odd_tree(tmp_path / "old", later=False)
    new = odd_tree(tmp_path / "new", later=True)
    assert there_and_back(tmp_path, old, new) < 5_000
    assert there_and_back(tmp_path, new, old) < 5_000
    table = read_table(new)
    assert parse_table(table.encoded()) == table
    assert (new / "sparse").stat().st_blocks * 512 < 1 << 20


def test_an_unchanged_tree_and_an_empty_one(tmp_path: Path) -> None:
    tree, empty = odd_tree(tmp_path / "old", later=False), tmp_path / "empty"
    empty.mkdir()
    assert there_and_back(tmp_path, tree, tree) < 1_000
    there_and_back(tmp_path, tree, empty)
    there_and_back(tmp_path, empty, tree)


NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda n: n not in (b".", b"..") and b"/" not in n and b"\0" not in n
)
FILES = st.binary(max_size=40) | st.sampled_from(
    [b"a" * 5000, b"ab" * 2500, lzma.compress(b"x" * 90)]
)
TREES = st.recursive(
    FILES | st.tuples(NAMES), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))  # fmt: skip


def lay(tree: object, place: bytes) -> None:
    """Make files of bytes, symbolic links of tuples, directories of dictionaries."""
    if isinstance(tree, bytes):
        with open(place, "wb") as f:  # noqa: PTH123
            f.write(tree)
        os.chmod(place, 0o600 + len(tree) % 64)  # noqa: PTH101
    elif isinstance(tree, tuple):
        os.symlink(tree[0], place)  # noqa: PTH211 - bytes
    else:
        os.mkdir(place)  # noqa: PTH102
        for name, value in tree.items():
            lay(value, place + b"/" + name)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(TREES, TREES)
def test_any_tree_becomes_any_other(old: dict[bytes, object], new: dict[bytes, object]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        lay(old, os.fsencode(place / "old"))
        lay(new, os.fsencode(place / "new"))
        there_and_back(place, place / "old", place / "new")


def test_the_same_trees_give_the_same_bytes(tmp_path: Path) -> None:
    old = odd_tree(tmp_path / "old", later=False)
    new = odd_tree(tmp_path / "new", later=True)
    again = tmp_path / "elsewhere/new"
    again.parent.mkdir()
    subprocess.run(["cp", "-a", new, again], check=True)
    first = make_delta(old, new, tmp_path / "1").description
    second = make_delta(old, again, tmp_path / "2").description
    assert first == second
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_file_is_told_by_the_one_it_comes_from(tmp_path: Path) -> None:
    for name in ("lib/modules/6.12.107/fs/x.ko", "lib/modules/6.12.107/net/x.ko", "lib/a.so.1.2"):
        path = tmp_path / "old" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    table = read_table(tmp_path / "old")

    def ancestor(path: bytes) -> bytes | None:
        record = replace(table.records[-1], path=path)
        number = Ancestors(table).of(record)
        return None if number is None else table.records[number].path

    assert ancestor(b"lib/modules/6.12.117/net/x.ko") == b"lib/modules/6.12.107/net/x.ko"
    assert ancestor(b"lib/modules/6.12.117/fs/x.ko") == b"lib/modules/6.12.107/fs/x.ko"
    assert ancestor(b"usr/lib/a.so.1.3") == b"lib/a.so.1.2"
    assert ancestor(b"lib/a.so.1.2") == b"lib/a.so.1.2"
    assert ancestor(b"lib/new") is None


def test_modules_are_compared_as_what_is_in_them(tmp_path: Path) -> None:
    """The .xz of two kernels have nothing in common; what is inside has nearly all."""
    inside = bytearray(random.Random(6).randbytes(1 << 18))
    for name, release in (("old", "6.12.107"), ("new", "6.12.117")):
        inside[1000] ^= 1
        path = tmp_path / name / release / "x.ko.xz"
        path.parent.mkdir(parents=True)
        path.write_bytes(lzma.compress(bytes(inside), check=lzma.CHECK_CRC32))
    assert there_and_back(tmp_path, tmp_path / "old", tmp_path / "new") < 2_000


def test_a_device_that_this_user_cannot_make(tmp_path: Path, monkeypatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    os.mkfifo(new / "pipe")
    make_delta(old, new, tmp_path / "delta")

    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", forbidden)
    with pytest.raises(UpgradeError, match=r"pipe' cannot be made: .*not permitted"):
        apply(old, tmp_path / "delta", tmp_path / "target")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta", "new", "old"]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    old = odd_tree(tmp_path / "old", later=False)
    make_delta(old, old, tmp_path / "delta")
    info = os.statvfs(tmp_path)
    full = os.statvfs_result((*info[:4], 1, *info[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(UpgradeError, match="no space left"):
        apply(old, tmp_path / "delta", tmp_path / "target")


def test_without_bsdiff4_it_is_unsupported(tmp_path: Path, monkeypatch) -> None:
    from tegu.release.delta import compare

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(compare, "import_module", missing)
    with pytest.raises(UnsupportedError, match="bsdiff4"):
        make_delta(tmp_path, tmp_path, tmp_path / "delta")


def test_the_verb(tmp_path: Path, capsys) -> None:
    old = odd_tree(tmp_path / "old", later=False)
    new = odd_tree(tmp_path / "new", later=True)
    out = tmp_path / "out.tgd"
    assert main(["release", "delta", str(old), str(new), "-o", str(out), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["description"]["size"] == out.stat().st_size
    told = Description.read((tmp_path / "out.tgd.json").read_text())
    assert told.new == digest_of(new).sha256
    assert told.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert main(["release", "delta", str(old), str(new), "-o", str(out)]) == 0
    assert main(["release", "delta", str(old), "no such image", "-o", str(out)]) == 2
    assert main(["release", "delta", str(old), str(new), "-o", "/nowhere/x"]) == 2


def test_by_way_of_a_signed_release(tmp_path: Path, shop: Workshop) -> None:
    """Published beside the notes, fetched by a client from file://, applied to the old tree."""
    old = odd_tree(tmp_path / "old", later=False)
    new = odd_tree(tmp_path / "new", later=True)
    manifest = small_release(shop, "26.11", previous="26.10")
    work = shop.work(Number.parse("26.11"))
    path = work / "files/deltas/server-26.10.tgd"
    path.parent.mkdir()
    made = make_delta(old, new, path).description
    listed = File("deltas/server-26.10.tgd", "delta", made.size, made.sha256, "server")
    manifest = replace(manifest, files=(*manifest.files, listed))
    manifest.write(work / "manifest.json")
    sign(shop, manifest)
    publish(shop, manifest)
    root = (shop.public / "metadata/1.root.json").read_bytes()
    client = Client(shop.public.as_uri(), tmp_path / "state", root)
    got = client.fetch("26.11/deltas/server-26.10.tgd", tmp_path / "got")
    assert apply(old, got, tmp_path / "target").sha256 == made.new
    (published,) = shop.public.glob("targets/26.11/deltas/*.tgd")
    data = bytearray(published.read_bytes())
    data[-1] ^= 1
    published.write_bytes(data)
    with pytest.raises(VerifyError):
        client.fetch("26.11/deltas/server-26.10.tgd", tmp_path / "again")
