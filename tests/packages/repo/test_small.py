"""The small parts: settings, versions, chunks, the swap of two directories."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import RepositoryError
from tegu.linux import libc
from tegu.packages.repo import rpm_version
from tegu.packages.repo.catalogue import Catalogue
from tegu.packages.repo.chunks import assemble
from tegu.packages.repo.settings import load_settings, template

ORDERED = ["1.0~rc1", "1.0", "1.0^git1", "1.0a", "1.0.1", "1.1", "1.10", "2", "1:0"]


def test_rpm_versions_in_order() -> None:
    for at, one in enumerate(ORDERED):
        for other in ORDERED[at + 1 :]:
            assert rpm_version.compare(one, other) < 0, (one, other)
            assert rpm_version.compare(other, one) > 0
        assert rpm_version.compare(one, one) == 0
    assert rpm_version.compare("1.0-1", "1.0-2") < 0
    assert rpm_version.compare("1_0", "1.0") == 0


@pytest.mark.skipif(shutil.which("rpm") is None, reason="rpm is not installed to compare with")
def test_rpm_versions_as_rpm_orders_them() -> None:
    import random

    draw = random.Random(6)
    pairs = []
    for _ in range(300):
        one, other = (
            "".join(draw.choice("0129.ab~^_") for _ in range(draw.randint(1, 6))) for _ in "xy"
        )
        pairs.append((one, other))
    calls = " ".join(f"print(rpm.vercmp('{a}','{b}')..' ')" for a, b in pairs)
    done = subprocess.run(
        ["rpm", "--eval", f"%{{lua: {calls}}}"], capture_output=True, text=True, check=True
    )
    theirs = [int(word) for word in done.stdout.split()]
    assert len(theirs) == len(pairs)
    wrong = [p for p, x in zip(pairs, theirs, strict=True) if rpm_version._part(*p) != x]
    assert wrong == []


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_rpm_versions_compare_both_ways(one: str, other: str) -> None:
    assert rpm_version.compare(one, other) == -rpm_version.compare(other, one)


def test_one_package_more_changes_one_chunk(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "state.db")
    entries = [(f"package{n:04}", f"Package: package{n:04}\n\n".encode()) for n in range(2000)]
    with catalogue.change():
        assemble(catalogue, "test", entries)
    before = {row[0] for row in catalogue.query("SELECT key FROM chunk")}
    assert 5 < len(before) < 100
    more = sorted([*entries, ("package0999a", b"Package: package0999a\n\n")])
    with catalogue.change():
        index = assemble(catalogue, "test", more, head=b"head\n")
    after = {row[0] for row in catalogue.query("SELECT key FROM chunk")}
    assert len(after - before) <= 3  # the head, and the chunk or two that it falls into
    plain = b"head\n" + b"".join(text for _, text in more)
    assert gzip.decompress(index.forms[".gz"]) == plain
    reader = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(index.forms[".zst"]), read_across_frames=True
    )
    assert reader.read() == plain
    assert index.size == len(plain)
    catalogue.close()


def test_an_empty_index_is_a_file(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "state.db")
    with catalogue.change():
        index = assemble(catalogue, "test", [])
    assert gzip.decompress(index.forms[".gz"]) == b""
    assert index.forms[".zst"]
    catalogue.close()


def test_a_damaged_catalogue_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database" * 100)
    with pytest.raises(RepositoryError, match="not a database"):
        Catalogue(tmp_path / "state.db")


def test_settings_read_back_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "repo.toml"
    good = template('quo"ted \\ name', ("dev",), ("amd64",), ("private/a.key",))
    path.write_text(good)
    assert load_settings(path).name == 'quo"ted \\ name'
    for old, new, why in [
        ('["dev"]', '["../dev"]', "no name for a channel"),
        ('["dev"]', '"dev"', "channels: a list of texts"),
        ('["dev"]', '["dev", "dev"]', "there twice"),
        ('["amd64"]', '["am d"]', "architectures: "),
        ('["private/a.key"]', "[]", "at least one"),
        ("valid_days = 14", "valid_days = 0", "valid_days: a number above zero"),
        ("valid_days", "valid_daze", "unknown key valid_daze"),
        ("keep_hours = 24", "keep_hours", "line"),
    ]:
        path.write_text(good.replace(old, new))
        with pytest.raises(RepositoryError, match=why):
            load_settings(path)
    with pytest.raises(RepositoryError, match="is no repository"):
        load_settings(tmp_path / "nowhere" / "repo.toml")


def test_two_directories_change_places(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.mkdir()
        (path / path.name).touch()
    libc.exchange(str(one), str(other))
    assert (one / "other").exists()
    assert (other / "one").exists()
    with pytest.raises(FileNotFoundError):
        libc.exchange(str(one), str(tmp_path / "nowhere"))
