"""The lock file: what is written is read again, and nothing else is."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import LockError
from tegu.packages import Lock, LockedPackage, LockedRepository
from tegu.packages.lockfile import dump, parse

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
name = st.from_regex(r"\A[a-z0-9][a-z0-9+.-]{1,12}\Z")
sha256 = st.text("0123456789abcdef", min_size=64, max_size=64)
number = st.integers(0, 2**40)
package = st.builds(
    LockedPackage,
    name=name,
    version=st.from_regex(r"\A[0-9][0-9A-Za-z.+~:-]{0,12}\Z"),
    architecture=st.sampled_from(["amd64", "all"]),
    size=number,
    sha256=sha256,
    filename=st.from_regex(r"\Apool/[a-z+~_.0-9]{1,20}deb\Z"),
    repository=st.sampled_from(["rock", "local"]),
    source=name,
    source_version=text,
    section=text,
    priority=st.sampled_from(["required", "optional"]),
    essential=st.booleans(),
    installed_size=number,
)
packages = st.lists(package, max_size=5, unique_by=lambda p: (p.name, p.architecture)).map(
    lambda found: tuple(sorted(found, key=lambda p: (p.name, p.architecture)))
)
locks = st.builds(
    Lock,
    definition=sha256,
    architecture=st.sampled_from(["x86-64", "arm64"]),
    timestamp=number,
    repositories=st.builds(
        LockedRepository,
        id=st.just("rock"),
        uri=text,
        suite=text,
        components=st.lists(text, max_size=3).map(tuple),
        inrelease_sha256=sha256,
        date=number,
    ).map(lambda r: (r,)),
    system=packages,
    tools=packages,
    requested=st.lists(name, max_size=4, unique=True).map(lambda n: tuple(sorted(n))),
)


def example() -> Lock:
    one = LockedPackage(
        name="apple",
        version="1.2-3",
        architecture="amd64",
        size=1000,
        sha256="a" * 64,
        filename="pool/apple_1.2-3_amd64.deb",
        repository="rock",
        source="apple",
        source_version="1.2-3",
    )
    return Lock(
        definition="d" * 64,
        architecture="x86-64",
        timestamp=1795054374,
        repositories=(
            LockedRepository("rock", "machine:mirror", "rock", ("main",), "b" * 64, 1795054374),
        ),
        system=(one, dataclasses.replace(one, name="pear", essential=True, source="fruit")),
        tools=(dataclasses.replace(one, name="knife"),),
        requested=("apple",),
    )


@given(locks)
def test_what_is_written_is_read_again(lock: Lock) -> None:
    assert parse(dump(lock)) == lock


@given(locks)
def test_any_toml_reader_reads_the_same(lock: Lock) -> None:
    data = tomllib.loads(dump(lock))
    assert data["timestamp"] == lock.timestamp
    assert tuple(data["requested"]) == lock.requested
    assert [p["name"] for p in data.get("system", [])] == [p.name for p in lock.system]
    assert [p.get("section", "") for p in data.get("tools", [])] == [p.section for p in lock.tools]
    assert data["repository"][0]["uri"] == lock.repositories[0].uri


def test_one_changed_package_changes_its_block_only(tmp_path: Path) -> None:
    lock = example()
    newer = dataclasses.replace(lock.system[0], version="1.2-4", source_version="1.2-4")
    other = dataclasses.replace(lock, system=(newer, lock.system[1]))
    before, after = dump(lock).splitlines(), dump(other).splitlines()
    assert [line for line in after if line not in before] == ['version = "1.2-4"']
    lock.write(tmp_path / "tegu.lock")
    assert Lock.read(tmp_path / "tegu.lock") == lock


def test_the_digest_follows_what_is_installed() -> None:
    lock = example()
    assert lock.digest() == dataclasses.replace(lock, definition="e" * 64).digest()
    assert lock.digest() == dataclasses.replace(lock, system=lock.system[::-1]).digest()
    changed = [
        dataclasses.replace(lock, timestamp=1),
        dataclasses.replace(lock, requested=()),
        dataclasses.replace(lock, tools=()),
        dataclasses.replace(lock, system=lock.system[:1]),
        dataclasses.replace(
            lock, system=(dataclasses.replace(lock.system[0], sha256="c" * 64), lock.system[1])
        ),
    ]
    assert len({lock.digest(), *(other.digest() for other in changed)}) == len(changed) + 1


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("format = 1", "format = 2", 3, "format 2, this tegu reads 1"),
        ("format = 1\n", "", 0, "does not begin with `format`"),
        ("format = 1", 'format = "1"', 3, "format must be a whole number"),
        ("timestamp = 1795054374\n", "", 1, "timestamp is missing"),
        ('name = "apple"', 'name = "../apple"', 0, "name is malformed"),
        ('name = "apple"', 'name = "apple', 0, "name must be a string"),
        ('name = "apple"', 'nome = "apple"', 0, "unknown key 'nome'"),
        ('name = "apple"', 'name = "pear"', 0, "the package pear is there twice"),
        ('name = "apple"\n', "", 0, "name is missing"),
        ("size = 1000", "size = -1", 0, "size must be a whole number"),
        ("size = 1000", "size = true", 0, "size must be a whole number"),
        ("size = 1000", "size = 1000\nsize = 1000", 0, "size is there twice"),
        ('sha256 = "' + "a" * 64, 'sha256 = "' + "a" * 63, 0, "sha256 is malformed"),
        ('filename = "pool/', 'filename = "/pool/', 0, "filename is malformed"),
        ('filename = "pool/', 'filename = "pool/../../', 0, "filename is malformed"),
        ('repository = "rock"', 'repository = "sand"', 0, "there is no repository 'sand'"),
        ("[[system]]", "[[sistem]]", 0, "unknown table '[[sistem]]'"),
        ("[[system]]", "<<<<<<< HEAD", 0, "not a lock: '<<<<<<< HEAD'"),
        ('components = ["main"]', 'components = ["main", 1]', 0, "must hold strings only"),
        ('components = ["main"]', 'components = ["main"', 0, "malformed value"),
    ],
)
def test_a_damaged_lock_names_the_line(old: str, new: str, line: int, why: str) -> None:
    good = dump(example())
    assert old in good
    with pytest.raises(LockError) as caught:
        parse(good.replace(old, new, 1), "my.lock")
    assert why in caught.value.message
    assert caught.value.message.startswith(f"my.lock:{line or ''}")
    assert caught.value.hint


def test_a_lock_cut_short_is_refused() -> None:
    good = dump(example())
    for length in range(len(good) - 1):
        with pytest.raises(LockError):
            parse(good[:length])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[package]\nname = 'x'\n", b"\0" * 100])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tegu.lock"
    path.write_bytes(content)
    with pytest.raises(LockError, match=r"tegu\.lock"):
        Lock.read(path)


def test_a_missing_lock_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="does not exist") as caught:
        Lock.read(tmp_path / "tegu.lock")
    assert "tegu lock" in (caught.value.hint or "")


@given(st.text(max_size=200))
def test_any_text_is_a_lock_or_an_error(text: str) -> None:
    with pytest.raises(LockError):
        parse(text)


@given(st.data())
def test_any_edited_lock_is_a_lock_or_an_error(data: st.DataObject) -> None:
    lines = dump(example()).split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(st.text(max_size=40) | st.sampled_from(lines) | st.just('x = "\\'))
    try:
        parse("\n".join(lines))
    except LockError as e:
        assert e.message.startswith("tegu.lock")
