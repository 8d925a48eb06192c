"""From a definition to a lock, and from one lock to the next."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from tegu.definition import Definition
from tegu.errors import DefinitionError, FetchError, LockError, SolveError, UsageError
from tegu.packages import LOCAL, Lock, fetch_all, make_lock, provide_local, stale
from tegu.packages.deb_write import DebEntry, write_deb
from tegu.packages.tools import tools_for
from tegu.store import Store

TOOLS = ["knife"]


@pytest.fixture
def lock(store, repository):
    """Return a function that publishes what was added and locks a definition of it."""
    repository.add("knife")
    repository.add("base-files", Essential="yes", Priority="required")

    def lock(definition: Definition, previous: Lock | None = None, *, date: int = 0, **options):
        repository.publish(**({"date": date} if date else {}))
        options.setdefault("tools", TOOLS)
        return make_lock(definition, store, previous=previous, **options)

    return lock


def versions(lock: Lock) -> dict[str, str]:
    return {p.name: p.version for p in lock.system}


def make_deb(path: Path, name: str = "mine", version: str = "1", **fields: str) -> Path:
    control = {"Package": name, "Version": version, "Architecture": "all", **fields}
    control |= {"Maintainer": "Nobody <nobody@tegu.invalid>", "Description": "ours"}
    return write_deb(path, control, [DebEntry("/usr/share/mine", b"x")], timestamp=1)


def test_a_lock_says_all_about_its_packages(lock, repository) -> None:
    repository.add(
        "apple",
        "1.2-3",
        Architecture="amd64",
        Source="fruit (1.2)",
        Section="food",
        Depends="core",
        Installed_Size="77",
    )
    repository.add("core", Source="heart")
    made = lock(repository.definition(install=["apple"]))
    assert versions(made) == {"apple": "1.2-3", "base-files": "1", "core": "1"}
    assert [p.name for p in made.tools] == ["base-files", "knife"]
    apple, base, core = made.system
    assert (apple.source, apple.source_version) == ("fruit", "1.2")
    assert (core.source, core.source_version) == ("heart", "1")
    assert (apple.section, apple.installed_size, apple.architecture) == ("food", 77, "amd64")
    assert apple.filename == "pool/apple_1.2-3_amd64.deb"
    assert base.essential
    assert base.priority == "required"
    assert made.requested == ("apple",)
    assert made.repositories[0].uri == f"file://{repository.root}"


def test_the_time_is_that_of_the_newest_index_and_stays(lock, repository) -> None:
    repository.add("apple", "1")
    definition = repository.definition(install=["apple"])
    first = lock(definition, date=1_700_000_000)
    assert first.timestamp == 1_700_000_000
    repository.add("elsewhere")
    assert lock(definition, first, date=1_700_009_999, update=True) == first
    repository.add("apple", "2")
    newer = lock(definition, first, date=1_700_009_999, update=True)
    assert newer.timestamp == 1_700_009_999


def test_nothing_changed_needs_no_mirror(lock, repository, store) -> None:
    import shutil

    repository.add("apple")
    definition = repository.definition(install=["apple"])
    first = lock(definition)
    shutil.rmtree(repository.root)
    assert make_lock(definition, store, previous=first, tools=TOOLS) is first


def test_locked_versions_stay_until_asked(lock, repository) -> None:
    for name in ("apple", "pear", "core"):
        repository.add(name, "1", **({"Depends": "core"} if name != "core" else {}))
    definition = repository.definition(install=["apple", "pear"])
    first = lock(definition)
    for name in ("apple", "pear", "core"):
        repository.add(name, "2", **({"Depends": "core"} if name != "core" else {}))
    repository.add("plum", "1")
    more = repository.definition(install=["apple", "pear", "plum"])
    grown = lock(more, first)
    assert versions(grown) == {**versions(first), "plum": "1"}
    assert grown.requested == ("apple", "pear", "plum")
    one = lock(more, grown, update=["pear"])
    assert versions(one) == {**versions(grown), "pear": "2"}
    every = lock(more, one, update=True)
    assert versions(every) == {
        "apple": "2", "base-files": "1", "core": "2", "pear": "2", "plum": "1",
    }  # fmt: skip
    less = lock(repository.definition(install=["apple"]), every)
    assert versions(less) == {"apple": "2", "base-files": "1", "core": "2"}


def test_an_update_may_take_others_along(lock, repository, caplog) -> None:
    repository.add("apple", "1", Depends="core")
    repository.add("core", "1")
    first = lock(repository.definition(install=["apple"]))
    repository.add("apple", "2", Depends="core (>= 2)")
    repository.add("core", "2")
    with caplog.at_level(logging.WARNING):
        second = lock(repository.definition(install=["apple"]), first, update=["apple"])
    assert versions(second) == {"apple": "2", "base-files": "1", "core": "2"}
    assert "core 1 could not be kept" in caplog.text


def test_update_of_what_is_not_locked(lock, repository) -> None:
    repository.add("apple")
    first = lock(repository.definition(install=["apple"]))
    with pytest.raises(UsageError, match="aple is not in the lock") as caught:
        lock(repository.definition(install=["apple"]), first, update=["aple"])
    assert "apple" in (caught.value.hint or "")


def test_a_version_that_left_the_index_stays_while_its_file_is_there(lock, repository) -> None:
    repository.add("apple", "1", real=True, Depends="core")
    repository.add("core", "1")
    first = lock(repository.definition(install=["apple"]))
    repository.drop("apple", "1")
    repository.add("apple", "2", real=True, Depends="core")
    repository.add("plum")
    second = lock(repository.definition(install=["apple", "plum"]), first)
    assert versions(second) == {**versions(first), "plum": "1"}
    assert [p for p in second.system if p.name == "apple"] == [
        p for p in first.system if p.name == "apple"
    ]


def test_a_version_that_is_gone_altogether_is_replaced(lock, repository, caplog) -> None:
    repository.add("apple", "1")
    first = lock(repository.definition(install=["apple"]))
    repository.drop("apple", "1")
    repository.add("apple", "2")
    repository.add("plum")
    with caplog.at_level(logging.WARNING):
        second = lock(repository.definition(install=["apple", "plum"]), first)
    assert versions(second)["apple"] == "2"
    assert "apple 1 is gone" in caplog.text


def test_a_locked_package_that_vanished_is_told_at_fetch_time(lock, repository, store) -> None:
    repository.add("apple", "1", real=True)
    made = lock(repository.definition(install=["apple"]))
    apple = [p for p in made.system if p.name == "apple"]
    (repository.root / apple[0].filename).unlink()
    with pytest.raises(FetchError, match="not on the mirror any more") as caught:
        fetch_all(apple, made, store)
    assert "tegu lock --update apple" in (caught.value.hint or "")


def test_offline(lock, repository, store) -> None:
    import shutil

    repository.add("apple")
    definition = repository.definition(install=["apple"])
    with pytest.raises(FetchError, match="not in the store"):
        lock(definition, offline=True)
    first = lock(definition)
    shutil.rmtree(repository.root)
    assert make_lock(definition, store, offline=True, tools=TOOLS) == first


def test_local_packages_win_and_pull_in_what_they_need(
    lock, repository, store, tmp_path: Path
) -> None:
    repository.add("mine", "99")
    repository.add("core")
    path = make_deb(tmp_path / "some.deb", Depends="core")
    made = lock(repository.definition(local=[path]))
    assert versions(made) == {"base-files": "1", "core": "1", "mine": "1"}
    (mine,) = [p for p in made.system if p.name == "mine"]
    assert (mine.repository, mine.filename) == (LOCAL, "mine_1_all.deb")
    assert store.blob(mine.sha256).read_bytes() == path.read_bytes()
    assert fetch_all([mine], made, store) == 0
    assert "mine" in made.requested


def test_a_changed_local_package_is_noticed(lock, repository, tmp_path: Path) -> None:
    repository.add("apple", "1")
    path = make_deb(tmp_path / "some.deb")
    definition = repository.definition(install=["apple"], local=[path])
    first = lock(definition, date=1_700_000_000)
    repository.add("apple", "2")
    make_deb(path, version="1", Depends="base-files")
    second = lock(definition, first, date=1_700_009_999)
    assert versions(second) == versions(first)
    assert second != first
    # All that came from the mirror is as it was, so the time is too.
    assert second.timestamp == first.timestamp


def _all_tools(lock: Lock, definition: Definition):
    return tuple(dataclasses.replace(lock.tools[0], name=name) for name in tools_for(definition))


def test_a_lock_from_elsewhere_gets_its_local_packages(
    lock, repository, store, tmp_path: Path
) -> None:
    path = make_deb(tmp_path / "some.deb")
    definition = repository.definition(local=[path])
    made = lock(definition)
    other = Store(tmp_path / "other-store")
    mine = [p for p in made.system if p.repository == LOCAL]
    with pytest.raises(FetchError, match="not in the store"):
        fetch_all(mine, made, other)
    provide_local(definition, made, other)
    assert other.blob(mine[0].sha256) is not None
    make_deb(path, version="2")
    with pytest.raises(LockError, match="here is version 2"):
        provide_local(definition, made, Store(tmp_path / "third-store"))


def test_local_files_that_do_not_fit(lock, repository, tmp_path: Path) -> None:
    foreign = make_deb(tmp_path / "foreign.deb", Architecture="arm64")
    with pytest.raises(DefinitionError, match="is for arm64, the system is amd64"):
        lock(repository.definition(local=[foreign]))
    twice = [make_deb(tmp_path / "a.deb"), make_deb(tmp_path / "b.deb", version="2")]
    with pytest.raises(SolveError, match="mine is there twice"):
        lock(repository.definition(local=twice))


def test_what_makes_a_lock_stale(lock, repository) -> None:
    repository.add("apple")
    definition = repository.definition(install=["apple"])
    made = lock(definition)
    made = dataclasses.replace(made, tools=_all_tools(made, definition))
    assert stale(made, definition) is None
    other = repository.definition(install=["apple", "pear"])
    assert "have changed" in (stale(made, other) or "")
    image = definition.image.model_copy(update={"filesystem": "xfs"})
    assert stale(made, definition.model_copy(update={"image": image})) == (
        "it lacks the tools xfsprogs"
    )
    system = definition.system.model_copy(update={"architecture": "arm64"})
    arm = definition.model_copy(update={"system": system})
    assert "it is for x86-64" in (stale(made, arm) or "")


def test_no_password_reaches_the_lock(lock, repository, serve, tmp_path: Path) -> None:
    repository.add("apple")
    repository.publish()
    server = serve(repository.root)
    definition = repository.definition(install=["apple"])
    url = server.url.replace("http://", "http://user:secret@")
    base = definition.base.model_copy(update={"mirror": url})
    made = lock(definition.model_copy(update={"base": base}))
    made.write(tmp_path / "tegu.lock")
    text = (tmp_path / "tegu.lock").read_text()
    assert "secret" not in text
    assert server.url in text
    assert "Authorization" in server.requests[0].headers


def test_the_tools_of_each_definition() -> None:
    def tools(**image: object) -> tuple[str, ...]:
        system = {"name": "a", "version": "1", "architecture": image.pop("on", "x86-64")}
        return tools_for(Definition.model_validate({"system": system, "image": image}))

    assert {"dpkg", "mtools", "qemu-utils", "grub-pc-bin"} <= set(tools())
    assert "xfsprogs" in tools(filesystem="xfs")
    assert "btrfs-progs" in tools(filesystem="btrfs")
    assert "erofs-utils" in tools(filesystem="erofs")
    assert "grub-pc-bin" not in tools(on="arm64")
