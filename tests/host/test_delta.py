"""Deltas as a machine meets them: whole, cut off, made up by someone else."""

from __future__ import annotations

import json
import lzma
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import TeguError, UnsupportedError, UpgradeError, VerifyError
from tegu.host.delta import Description, describe, recode, recode_linux
from tegu.host.delta.container import MAGIC, STREAMS, parse_plan, read_header
from tegu.host.delta.patch import Patch, coded, coded_move, patched
from tegu.host.delta.table import Record, Table, parse_table, read_table
from tegu.host.upgrade.delta import apply

DIGEST = b"0" * 64


class Bytes:
    """A source of bytes, as a stream of a delta is."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        if size > len(self.data):
            raise VerifyError("short")
        taken, self.data = self.data[:size], self.data[size:]
        return taken


def pack(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32, preset=1)


def write_delta(path: Path, old: Path, records: list[Record], **streams: bytes) -> Path:
    """Write a delta by hand: `records` is the new table, further contents are in `streams`."""
    table = Table(tuple(records)).encoded()
    plan = json.loads(streams.pop("plan", b"[]"))
    parts = {
        "plan": json.dumps([[-1, "", 1, len(table), None], *plan]).encode(),
        "add": coded(0) + streams.pop("add", b""),
        "take": coded(len(table)) + streams.pop("take", b""),
        "move": coded_move(0) + streams.pop("move", b""),
        "difference": streams.pop("difference", b""),
        "fresh": table + streams.pop("fresh", b""),
    }
    packed = {name: pack(parts[name]) for name in STREAMS}
    header = {
        "format": 1,
        "from": read_table(old).digest().sha256,
        "to": Table(tuple(records)).digest().sha256,
        "contents": 1 + len(plan),
        "streams": {name: [len(packed[name]), len(parts[name])] for name in STREAMS},
    }
    header.update(json.loads(streams.pop("header", b"{}")))
    text = json.dumps(header).encode()
    body = b"".join(packed[name] for name in STREAMS)
    path.write_bytes(MAGIC + struct.pack("<I", len(text)) + text + body)
    return path


def step(add: int, take: int) -> dict[str, bytes]:
    """Return the streams of one instruction."""
    return {"add": coded(add), "take": coded(take), "move": coded_move(0)}


def root_record() -> Record:
    return Record(b".", "d", 0o755, os.getuid(), os.getgid(), 1_000_000_000)


def file_record(path: bytes, data: bytes, content: bytes | None = None) -> Record:
    import hashlib

    digest = content or hashlib.sha256(data).hexdigest().encode()
    return Record(path, "f", 0o644, os.getuid(), os.getgid(), 10**18 + 7, len(data), digest)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    tree = tmp_path / "old"
    tree.mkdir()
    (tree / "kept").write_bytes(b"kept as it is")
    return tree


def test_a_delta_written_by_hand_is_applied(tmp_path: Path, old: Path) -> None:
    records = [
        root_record(),
        file_record(b"changed", b"kept AS it was"),
        Record(b"link", "h", content=b"changed"),
        file_record(b"same", b"kept as it is"),
    ]
    number = next(i for i, r in enumerate(read_table(old).records) if r.path == b"kept")
    difference = bytes((b - a) % 256 for a, b in zip(b"kept as it ", b"kept AS it ", strict=True))
    delta = write_delta(
        tmp_path / "delta",
        old,
        records,
        plan=json.dumps([[number, "", 1, 14, None]]).encode(),
        add=coded(11),
        take=coded(3),
        move=coded_move(0),
        difference=difference,
        fresh=b"was",
    )
    made = apply(old, delta, tmp_path / "new")
    assert made.sha256 == describe(delta).new == read_table(tmp_path / "new").digest().sha256
    assert (tmp_path / "new/link").read_bytes() == b"kept AS it was"
    assert (tmp_path / "new/link").samefile(tmp_path / "new/changed")
    assert (tmp_path / "new/same").stat().st_mtime_ns == 10**18 + 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta", "new", "old"]


def refused(tmp_path: Path, old: Path, delta: Path, words: str) -> None:
    """Hold that a delta is refused with such words, and nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VerifyError, match=words):
        apply(old, delta, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (b"../out", "leads elsewhere"),
        (b"/etc/passwd", "leads elsewhere"),
        (b"a/../../out", "leads elsewhere"),
        (b"a//b", "leads elsewhere"),
        (b"missing/file", "in no directory"),
        (b"link/out", "in no directory"),
        (b"n" * 256, "leads elsewhere"),
    ],
)
def test_paths_that_lead_elsewhere(tmp_path: Path, old: Path, path: bytes, words: str) -> None:
    link = Record(b"link", "l", 0o777, content=os.fsencode(tmp_path))
    records = sorted([link, file_record(path, b"")], key=lambda r: r.path)
    delta = write_delta(tmp_path / "delta", old, [root_record(), *records])
    refused(tmp_path, old, delta, words)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (Record(b"a", "h", content=b"b"), "leads to no file"),
        (Record(b"a", "h", content=b"/etc/shadow"), "leads to no file"),
        (Record(b"a", "h", content=b"."), "leads to no file"),
        (Record(b"a", "x"), "what it cannot be"),
        (Record(b"a", "l"), "what it cannot be"),
        (Record(b"a", "c", content=b"1"), "what it cannot be"),
        (Record(b"a", "f", content=b"short"), "what it cannot be"),
        (Record(b"a", "d", size=4), "what it cannot be"),
        (Record(b"a", "f", uid=1 << 32, content=DIGEST), "owner"),
        (Record(b"a", "f", uid=-1, content=DIGEST), "owner"),
        (Record(b"a", "f", size=1 << 50, content=DIGEST), "size"),
        (Record(b"a", "f", mode=0o100644, content=DIGEST), "numbers"),
    ],
)
def test_records_that_cannot_be(tmp_path: Path, old: Path, record: Record, words: str) -> None:
    delta = write_delta(tmp_path / "delta", old, [root_record(), record])
    refused(tmp_path, old, delta, words)


def test_wrong_base_says_which_tree_is_needed(tmp_path: Path, old: Path) -> None:
    delta = write_delta(tmp_path / "delta", old, [root_record()])
    (old / "kept").write_bytes(b"something else")
    with pytest.raises(UpgradeError, match=f"for the tree {describe(delta).old[:16]}") as caught:
        apply(old, delta, tmp_path / "new")
    assert "the whole image" in (caught.value.hint or "")
    assert not (tmp_path / "new").exists()


def test_contents_that_are_not_what_the_table_says(tmp_path: Path, old: Path) -> None:
    records = [root_record(), file_record(b"a", b"good")]
    parts = {"plan": b'[[-1, "", 1, 4, null]]', **step(0, 4)}
    delta = write_delta(tmp_path / "delta", old, records, fresh=b"evil", **parts)
    refused(tmp_path, old, delta, "did not come out")
    delta = write_delta(tmp_path / "delta", old, records, fresh=b"good", **parts)
    assert apply(old, delta, tmp_path / "new").size == 4
    with pytest.raises(UpgradeError, match="is there already"):
        apply(old, delta, tmp_path / "new")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"plan": b'[[-1, "", 1, 5, null]]', **step(0, 5)}, "another size"),
        ({"plan": b'[[-1, "", 1, 4, null]]', **step(0, 9)}, "longer than"),
        ({"plan": b'[[-1, "", 1, 4, null]]', **step(0, 1)}, "shorter than"),
        ({"plan": b'[[-1, "", 1, 4, null]]', **step(4, 0)}, "past the end"),
        ({"plan": b'[[-1, "", 2, 4, null]]', "add": bytes(2), "take": bytes(2), "move": bytes(2)},
         "make nothing"),
        ({"plan": b'[[1, "xz", 1, 4, null]]'}, "cannot be read"),
        ({"plan": b'[[1, "zip", 1, 4, null]]'}, "not known here"),
        ({"plan": b'[[-1, "", 1, 4, ["zip", {}]]]'}, "not known here"),
        ({"plan": b'[[-1, "", 1, 4, ["xz", {}]]]'}, "lacks 'check'"),
        ({"plan": b'[[0, "", 1, 4, null]]'}, "which is no file"),
        ({"plan": b'[[99, "", 1, 4, null]]'}, "out of bounds"),
        ({"plan": b'[[-1, "", -1, 4, null]]'}, "out of bounds"),
        ({"plan": b'[[-1, "", 1, true, null]]'}, "another kind"),
        ({"plan": b"[[1, 2]]"}, "plan of the delta is none"),
        ({}, "fewer contents"),
        ({"plan": b'[[-1, "", 0, 0, null], [-1, "", 0, 0, null]]'}, "another size"),
    ],
)  # fmt: skip
def test_plans_that_do_not_fit(tmp_path: Path, old: Path, parts: dict[str, bytes], words) -> None:
    records = [root_record(), file_record(b"a", b"good")]
    delta = write_delta(tmp_path / "delta", old, records, **{"fresh": b"good" * 4, **parts})
    refused(tmp_path, old, delta, words)


def test_more_than_the_tree_takes_is_refused(tmp_path: Path, old: Path) -> None:
    records = [root_record()]
    delta = write_delta(tmp_path / "delta", old, records, fresh=b"more")
    refused(tmp_path, old, delta, "longer than it must be")
    delta = write_delta(tmp_path / "delta", old, records, plan=b'[[-1, "", 0, 0, null]]')
    refused(tmp_path, old, delta, "no file of the tree has")


def test_declared_sizes_are_enforced(tmp_path: Path, old: Path) -> None:
    """A stream that unpacks to more than its header says is not unpacked to its end."""
    delta = write_delta(tmp_path / "delta", old, [root_record()], fresh=bytes(1 << 24))
    data = bytearray(delta.read_bytes())
    start = data.index(b'"fresh": [')
    end = data.index(b"]", start)
    packed, size = json.loads(bytes(data[start + 9 : end + 1]))
    told = f"[{packed}, {size - (1 << 24)}]".ljust(end + 1 - start - 9).encode()
    data[start + 9 : end + 1] = told
    delta.write_bytes(data)
    refused(tmp_path, old, delta, "longer than it must be")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"format": 2}', "this program knows 1"),
        (b'{"from": "x"}', "digests are none"),
        (b'{"streams": {}}', "other streams"),
        (b'{"contents": 0}', "other streams"),
        (b'{"contents": "1"}', "other streams"),
        (b'{"to": "' + b"1" * 64 + b'"}', "not the one that it names"),
        (b'{"contents": 2}', "another number of contents"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path: Path, old: Path, header: bytes, words: str) -> None:
    delta = write_delta(tmp_path / "delta", old, [root_record()], header=header)
    refused(tmp_path, old, delta, words)


def test_cut_off_or_changed_anywhere(tmp_path: Path, old: Path) -> None:
    records = [root_record(), file_record(b"a", b"good" * 50)]
    parts = {
        "plan": b'[[-1, "", 1, 200, null]]',
        "add": coded(0),
        "take": coded(200),
        "move": b"\0",
    }
    whole = write_delta(tmp_path / "d", old, records, fresh=b"good" * 50, **parts).read_bytes()
    delta = tmp_path / "delta"
    for length in range(0, len(whole), 29):
        delta.write_bytes(whole[:length])
        refused(tmp_path, old, delta, "delta")
    delta.write_bytes(whole + b"x")
    refused(tmp_path, old, delta, "should have")
    for place in range(0, len(whole), 13):
        delta.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(TeguError):
            apply(old, delta, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    for parse in (
        lambda: parse_table(data),
        lambda: parse_plan(data, 1, 1),
        lambda: Description.read(data.decode(errors="replace")),
        lambda: recode.decode("xz", data, 1000),
        lambda: recode.decode("linux", data, 1000),
    ):
        try:
            parse()
        except VerifyError:
            continue
    assert recode.settings_of(data) is None


@given(st.binary(max_size=200), st.integers(0, 500))
def test_no_header_breaks_the_parser(tmp_path_factory, data: bytes, size: int) -> None:
    import io

    for start in (b"", MAGIC, MAGIC + struct.pack("<I", len(data))):
        with pytest.raises(VerifyError):
            read_header(io.BytesIO(start + data), size)


STEPS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), max_size=6)


@given(st.binary(min_size=1, max_size=80), STEPS, st.data())
def test_patches_are_what_their_instructions_say(old: bytes, steps, data) -> None:
    numbers = [b"", b"", b""]
    expected, difference, fresh, position, count = b"", b"", b"", 0, 0
    for add, take in steps:
        length = min(add, len(old) - position)
        delta = data.draw(st.binary(min_size=length, max_size=length))
        more = data.draw(st.binary(min_size=take, max_size=take))
        there = old[position : position + length]
        expected += bytes((a + b) % 256 for a, b in zip(there, delta, strict=True)) + more
        difference, fresh = difference + delta, fresh + more
        new = data.draw(st.integers(0, len(old)))
        step = coded(length), coded(take), coded_move(new - position - length)
        numbers = [n + s for n, s in zip(numbers, step, strict=True)]
        position, count = new, count + 1
    patch = Patch(*map(Bytes, (*numbers, difference, fresh)))
    assert b"".join(patched(old, count, len(expected), patch)) == expected


def xz(data: bytes, **more: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, **more}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


@pytest.mark.parametrize("size", [1, 1000, 5_000_000])
def test_xz_is_put_together_again(size: int) -> None:
    data = (b"tegu %d " * 200_000 % tuple(range(200_000)))[:size]
    for packed in (xz(data), xz(data, dict_size=1 << 20)):
        how = recode.settings_of(packed)
        assert how is not None
        inside = recode.decode("xz", packed, 1 << 24)
        assert inside == data
        assert b"".join(recode.encode(how, [inside[:7], inside[7:]], len(inside))) == packed


def test_an_xz_of_another_making_is_left_alone() -> None:
    data = b"tegu" * 5000
    assert recode.settings_of(xz(b"")) is None
    assert recode.settings_of(lzma.compress(data, check=lzma.CHECK_SHA256)) is None
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
    assert recode.settings_of(lzma.compress(data, filters=filters)) is None
    assert recode.settings_of(xz(data) + xz(data)) is None
    assert recode.settings_of(xz(data)[:-5]) is None


def test_another_zstd_is_said_before_anything_is_written(tmp_path: Path, old: Path) -> None:
    plan = b'[[-1, "", 0, 0, ["linux", {"head": 0, "tail": 0, "version": 1}]]]'
    delta = write_delta(tmp_path / "delta", old, [root_record()], plan=plan)
    with pytest.raises(UnsupportedError, match=r"needs zstd 0\.0\.1"):
        apply(old, delta, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recode_linux, "_versions", lambda: [10507])
    monkeypatch.setattr(recode_linux, "_available", lambda: 300 << 20)
    with pytest.raises(UnsupportedError, match=r"300 MiB are free"):
        recode_linux.require({"version": 10507})


Make = Callable[[bytes], bytes]


def bzimage(payload: bytes, size: int) -> bytes:
    """Return a file with the header of a bzImage around a payload."""
    head = bytearray(0x1000)
    head[0x1F1] = 3
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x20F)
    struct.pack_into("<II", head, 0x248, 0x1000 - 4 * 512, len(payload) + 4)
    return bytes(head) + payload + struct.pack("<I", size) + b"after the payload"


def test_a_kernel_image_is_put_together_again() -> None:
    zstandard = pytest.importorskip("zstandard", reason="the Python package zstandard is missing")
    kernel = b"kernel %d " * 3000 % tuple(range(3000))
    packer = zstandard.ZstdCompressor(
        level=22, write_checksum=True, write_content_size=False, threads=1
    ).compressobj()
    image = bzimage(packer.compress(kernel) + packer.flush(), len(kernel))
    how = recode.settings_of(image)
    assert how is not None and how[0] == "linux"
    inside = recode.decode("linux", image, 1 << 20)
    assert kernel in inside and inside.endswith(b"after the payload")
    assert b"".join(recode.encode(how, [inside], len(inside))) == image
    assert recode.settings_of(image.replace(b"after", b"AFTER")) is not None
    other = bzimage(zstandard.ZstdCompressor(level=3).compress(kernel), len(kernel))
    assert recode.settings_of(other) is None
    with pytest.raises(VerifyError, match="another size"):
        recode.decode("linux", bzimage(packer_of(zstandard, kernel), len(kernel) + 1), 1 << 20)


def packer_of(zstandard, data: bytes) -> bytes:
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return stream.compress(data) + stream.flush()


def test_descriptions_are_read_back(tmp_path: Path, old: Path) -> None:
    found = describe(write_delta(tmp_path / "delta", old, [root_record()]))
    assert Description.read(found.to_json()) == found
    with pytest.raises(VerifyError, match="describes no delta"):
        Description.read(found.to_json().replace('"format": 1', '"format": 9'))
    with pytest.raises(UpgradeError, match="No such file"):
        describe(tmp_path / "nothing")
