"""The lock of a kernel's source: written from a signed index, and what it is good for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tegu.errors import FetchError, LockError
from tegu.kernel import load_recipe
from tegu.kernel import source as source_module
from tegu.kernel.source import lock_source, source_of
from tegu.packages import SourcePackage, fetch_source
from tegu.packages.source_package import SourceFile
from tegu.store import Store

from .test_recipe import TOML, write

DATA = b"source"
FILE = SourceFile("linux_6.12.107.orig.tar.xz", len(DATA), hashlib.sha256(DATA).hexdigest())
PACKAGE = SourcePackage("linux", "6.12.107-1", "pool/main/l/linux", (FILE,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe; the index has its source at first, and the distribution one mirror."""
    path = write(tmp_path)
    monkeypatch.setattr(source_module, "find_source", lambda *_, **__: PACKAGE)
    monkeypatch.setattr(source_module, "mirrors_of", lambda _: (f"file://{tmp_path}/mirror",))
    return path


def test_locked_once_the_index_is_not_asked(
    recipe: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_source(load_recipe(recipe), store)

    def gone(*_: object, **__: object) -> SourcePackage:
        raise FetchError("the suite has a newer one")

    monkeypatch.setattr(source_module, "find_source", gone)
    found = source_of(load_recipe(recipe), store)
    assert (found.files, found.mirrors) == ((FILE,), (f"file://{tmp_path}/mirror",))
    with pytest.raises(FetchError, match=r"linux 6.12.107-1 is not on the mirror any more") as e:
        fetch_source(found, store)
    assert "a mirror that keeps old versions" in str(e.value.hint)
    pool = tmp_path / "archive/pool/main/l/linux"
    pool.mkdir(parents=True)
    (pool / FILE.name).write_bytes(DATA)
    found = source_of(load_recipe(recipe), store, mirrors=[f"file://{tmp_path}/archive"])
    assert fetch_source(found, store)[FILE.name].read_bytes() == DATA
    # All is in the store now: neither mirror nor network is asked for.
    assert source_of(load_recipe(recipe), store).mirrors == ()


def test_a_lock_of_another_version(recipe: Path, store: Store) -> None:
    lock_source(load_recipe(recipe), store)
    recipe.write_text(TOML.replace("6.12.107-1", "6.12.108-1"))
    with pytest.raises(LockError, match=r"is of linux 6.12.107-1, the recipe builds") as caught:
        source_of(load_recipe(recipe), store)
    assert f"tegu kernel lock --recipe {recipe}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[[file]]", "[file]"),
        ("size = 6", "size = 'x'"),
        ('directory = "pool', 'directory = "../pool'),
        (FILE.sha256, "0" * 63),
        (FILE.name, "../../etc/passwd"),
        ('package = "linux"\n', ""),
        ('package = "linux"', 'package = "linux'),
    ],
)
def test_a_damaged_lock(recipe: Path, store: Store, old: str, new: str) -> None:
    lock_source(load_recipe(recipe), store)
    lock = recipe.with_suffix(".lock")
    text = lock.read_text()
    assert old in text
    lock.write_text(text.replace(old, new))
    with pytest.raises(LockError, match="not a lock of a kernel's source"):
        source_of(load_recipe(recipe), store)


def test_our_own_lock_is_of_our_recipe(store: Store) -> None:
    package = source_of(load_recipe(), store, offline=True)
    assert package.version == load_recipe().version
    assert {Path(f.name).suffix for f in package.files} == {".dsc", ".xz"}
