"""Source packages from a signed index, and what happens when index, pool or content is wrong."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import FetchError, VerifyError
from tegu.packages.source_package import fetch_source, find_source, parse_stanza
from tegu.store import Store

from .conftest import Repository

CONTENT = {"linux_1-1.dsc": b"dsc", "linux_1.orig.tar.xz": b"orig", "linux_1-1.debian.tar.xz": b"d"}


def add_source(
    repository: Repository, version: str, content: dict[str, bytes], *, pool: bool = True
) -> None:
    lines = [f"Package: linux\nBinary: linux-image,\n linux-doc\nVersion: {version}", "Files:"]
    lines += [f" 0123 {len(c)} {name}" for name, c in content.items()]
    lines.append("Checksums-Sha256:")
    for name, data in content.items():
        lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}")
        if pool:
            path = repository.root / "pool/l/linux" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    lines.append("Directory: pool/l/linux")
    repository.sources.append("\n".join(lines) + "\n")


def test_found_and_fetched(repository: Repository, store: Store) -> None:
    repository.sources.append("Package: linux-other\nVersion: 9\nDirectory: x\nChecksums-Sha256:\n")
    add_source(repository, "1-1", CONTENT)
    repository.publish()
    package = find_source(repository.definition(), "linux", store)
    assert (package.name, package.version) == ("linux", "1-1")
    assert {f.name for f in package.files} == set(CONTENT)
    files = fetch_source(package, store)
    assert {name: path.read_bytes() for name, path in files.items()} == CONTENT


def test_newest_unless_a_version_is_named(repository: Repository, store: Store) -> None:
    for version in ("6.12.9-1", "6.12.107-1", "6.12.74-2"):
        add_source(repository, version, CONTENT)
    repository.publish()
    definition = repository.definition()
    assert find_source(definition, "linux", store).version == "6.12.107-1"
    assert find_source(definition, "linux", store, version="6.12.74-2").version == "6.12.74-2"


def test_absent_version_names_those_there_are(repository: Repository, store: Store) -> None:
    add_source(repository, "6.12.9-1", CONTENT)
    repository.publish()
    with pytest.raises(FetchError, match=r"no suite .* linux 7-1") as caught:
        find_source(repository.definition(), "linux", store, version="7-1")
    assert "6.12.9-1" in str(caught.value.hint)


def test_verified_once_survives_the_index(repository: Repository, store: Store) -> None:
    add_source(repository, "1-1", CONTENT)
    repository.publish()
    fetch_source(find_source(repository.definition(), "linux", store, version="1-1"), store)
    repository.sources.clear()
    add_source(repository, "2-1", {"linux_2-1.dsc": b"new"})
    repository.publish()
    old = find_source(repository.definition(), "linux", store, version="1-1")
    assert set(fetch_source(old, store)) == set(CONTENT)


def test_gone_from_the_pool(repository: Repository, store: Store) -> None:
    add_source(repository, "1-1", CONTENT, pool=False)
    repository.publish()
    package = find_source(repository.definition(), "linux", store)
    with pytest.raises(FetchError, match="not on the mirror") as caught:
        fetch_source(package, store)
    assert "a mirror that keeps old versions" in str(caught.value.hint)


def test_another_mirror_is_asked_after_the_first(
    repository: Repository, store: Store, tmp_path: Path
) -> None:
    """What is noted of a package does not tie it to the mirror where it was first seen."""
    add_source(repository, "1-1", CONTENT, pool=False)
    repository.publish()
    seen = find_source(repository.definition(), "linux", store, version="1-1")
    with pytest.raises(FetchError):
        fetch_source(seen, store)
    archive = tmp_path / "archive"
    for name, data in CONTENT.items():  # as the pool of a security archive names it
        path = archive / "pool/updates/l/linux" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    base = repository.definition().base.model_copy(update={"mirror": f"file://{archive}"})
    moved = repository.definition().model_copy(update={"base": base})
    package = find_source(moved, "linux", store, version="1-1")
    assert package.mirrors == (f"file://{archive}",)
    assert set(fetch_source(package, store)) == set(CONTENT)
    again = replace(seen, mirrors=(f"file://{tmp_path / 'nowhere'}", f"file://{archive}"))
    store.drop_blob(hashlib.sha256(b"orig").hexdigest())
    assert set(fetch_source(again, store)) == set(CONTENT)


def test_another_keyring_is_asked_anew(repository: Repository, store: Store) -> None:
    add_source(repository, "1-1", CONTENT)
    repository.publish()
    find_source(repository.definition(), "linux", store, version="1-1")
    other = repository.keys.make("stranger", when="20200101T000000")
    base = repository.definition().base.model_copy(update={"keyring": other})
    with pytest.raises(VerifyError):
        find_source(
            repository.definition().model_copy(update={"base": base}), "linux", store, version="1-1"
        )


def test_offline_fetches_nothing(repository: Repository, store: Store) -> None:
    add_source(repository, "1-1", CONTENT)
    repository.publish()
    package = find_source(repository.definition(), "linux", store, version="1-1")
    with pytest.raises(FetchError, match=r"linux_1\S+ of linux 1-1 is not in the store") as caught:
        fetch_source(package, store, offline=True)
    assert "--offline" in str(caught.value.hint)
    fetch_source(package, store)
    assert set(fetch_source(package, store, offline=True)) == set(CONTENT)


def test_changed_file_is_refused(repository: Repository, store: Store) -> None:
    add_source(repository, "1-1", CONTENT)
    (repository.root / "pool/l/linux/linux_1.orig.tar.xz").write_bytes(b"evil")
    repository.publish()
    with pytest.raises(VerifyError):
        fetch_source(find_source(repository.definition(), "linux", store), store)


def test_unsigned_index_is_refused(repository: Repository, store: Store) -> None:
    add_source(repository, "1-1", CONTENT)
    repository.publish()
    signed = repository.dists / "InRelease"
    signed.write_bytes(signed.read_bytes().replace(b"Codename: rock", b"Codename: roll"))
    with pytest.raises(VerifyError):
        find_source(repository.definition(), "linux", store)


@pytest.mark.parametrize(
    "stanza",
    [
        "Package: linux\nVersion: 1\nDirectory: pool",
        "Package: linux\nVersion: 1\nChecksums-Sha256:\n",
        "Package: linux\nVersion: 1\nDirectory: ../..\nChecksums-Sha256:\n",
        "Package: linux\nVersion: 1\nDirectory: /etc\nChecksums-Sha256:\n",
        f"Package: l\nVersion: 1\nDirectory: p\nChecksums-Sha256:\n {'0' * 64} 1 ../../etc/passwd",
        f"Package: l\nVersion: 1\nDirectory: p\nChecksums-Sha256:\n {'0' * 63} 1 a.dsc",
        "",
    ],
)
def test_malformed_stanza(stanza: str) -> None:
    with pytest.raises(VerifyError):
        parse_stanza(stanza)


@given(st.text())
def test_any_text_is_a_package_or_refused(text: str) -> None:
    try:
        package = parse_stanza(text)
    except VerifyError:
        return
    assert all("/" not in f.name for f in package.files)


def test_store_note_that_is_damaged_is_read_anew(repository: Repository, store: Store) -> None:
    add_source(repository, "1-1", CONTENT)
    repository.publish()
    find_source(repository.definition(), "linux", store, version="1-1")
    (note,) = (store.root / "sources-2").iterdir()
    note.write_text('{"name": "linux"}')
    assert find_source(repository.definition(), "linux", store, version="1-1").files
