"""The store: nothing half-written, nothing unverified, safe with several users."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import StoreError, VerifyError
from tegu.linux import mount, run_isolated
from tegu.store import Store

DATA = b"some package" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_blob_is_there_once_it_is_whole(store: Store) -> None:
    with store.incoming(SHA, len(DATA)) as blob:
        blob.write(DATA)
        assert store.blob(SHA) is None
    path = store.blob(SHA)
    assert path is not None
    assert path.read_bytes() == DATA


def test_wrong_content_is_refused_and_not_kept(store: Store) -> None:
    with pytest.raises(VerifyError, match=SHA), store.incoming(SHA, len(DATA)) as blob:
        blob.write(DATA[:-1] + b"!")
    assert store.blob(SHA) is None
    assert list((store.root / "partial").iterdir()) == []


def test_an_interrupted_blob_is_resumed(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.incoming(SHA, len(DATA)) as blob:
        blob.write(DATA[:500])
        raise KeyboardInterrupt
    assert store.blob(SHA) is None
    with store.incoming(SHA, len(DATA)) as blob:
        assert blob.offset == 500
        blob.write(DATA[500:])
    assert store.blob(SHA) is not None


def test_a_restart_forgets_what_had_arrived(store: Store) -> None:
    with store.incoming(SHA, len(DATA)) as blob:
        blob.write(b"rubbish")
        blob.restart()
        blob.write(DATA)
    assert store.blob(SHA) is not None


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=6))
def test_any_cut_of_the_stream_gives_the_same_blob(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    at = 0
    for cut in [*sorted(cuts), len(DATA)]:
        try:
            with store.incoming(SHA, len(DATA)) as blob:
                assert blob.offset == at
                blob.write(DATA[at:cut])
                at = cut
                if cut != len(DATA):
                    raise InterruptedError
        except InterruptedError:
            continue
        break
    assert store.blob(SHA) is not None


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()

    def work(_: object) -> list[str]:
        mount("tmpfs", small, data="size=256k")
        store = Store(small / "store")
        data = os.urandom(1 << 20)
        sha256 = hashlib.sha256(data).hexdigest()
        full = pytest.raises(StoreError, match="no space left")
        with full, store.incoming(sha256, len(data)) as blob:
            blob.write(data)
        return [p.name for p in (store.root / "partial").iterdir()]

    assert run_isolated(work) == []


def _receive(root: Path) -> None:
    store = Store(root)
    if store.blob(SHA) is None:
        with store.incoming(SHA, len(DATA)) as blob:
            blob.restart()
            blob.write(DATA)
    with store.new_tree("things", "one") as tree:
        (tree / "file").write_text("x")


def test_two_processes_may_bring_the_same_thing(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_receive, args=(store.root,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    tree = store.tree("things", "one")
    assert tree is not None
    assert (tree / "file").read_text() == "x"
    assert list((store.root / "tmp").iterdir()) == []


def test_a_tree_that_failed_is_not_there(store: Store) -> None:
    with pytest.raises(ValueError, match="no"), store.new_tree("things", "two") as tree:
        (tree / "half").write_text("written")
        raise ValueError("no")
    assert store.tree("things", "two") is None
    assert list((store.root / "tmp").iterdir()) == []


def test_sweep_takes_what_the_dead_left_and_nothing_else(store: Store) -> None:
    (store.root / "tmp" / "dead").mkdir()
    with store.scratch() as alive:
        assert store.sweep() == 1
        assert alive.is_dir()


def test_a_foreign_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("another program 7\n")
    with pytest.raises(StoreError, match="another program 7"):
        Store(tmp_path)


def test_read_only_directories_can_be_dropped(store: Store) -> None:
    with store.new_tree("things", "three") as tree:
        (tree / "locked").mkdir()
        (tree / "locked" / "file").touch()
        (tree / "locked").chmod(0o500)
    store.drop_tree("things", "three")
    assert store.tree("things", "three") is None
    assert list((store.root / "tmp").iterdir()) == []
