"""All versions of a package in signed indexes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import FetchError, VerifyError
from tegu.packages import fetch_version, find_versions
from tegu.packages.versions import parse_binary, read_packages
from tegu.store import Store

from .conftest import Repository


def test_all_versions_oldest_first(repository: Repository, store: Store) -> None:
    for version in ("6.12.9-1", "6.12.107-1", "6.12.74-2"):
        repository.add("linux-image-cloud", version, real=True)
    repository.add("linux-image-other", "7")
    repository.publish()
    definition = repository.definition()
    found = find_versions(definition, "linux-image-cloud", store, "amd64")
    assert [v.package.version for v in found] == ["6.12.9-1", "6.12.74-2", "6.12.107-1"]
    assert len(find_versions(definition, "linux-image-*", store, "amd64")) == 4
    path = fetch_version(found[1], store)
    name = "linux-image-cloud_6.12.74-2_all.deb"
    assert path.read_bytes() == (repository.root / "pool" / name).read_bytes()
    with pytest.raises(FetchError, match="not on the mirror"):
        fetch_version(find_versions(definition, "linux-image-o*", store, "amd64")[0], store)
    with pytest.raises(FetchError, match="no suite of the definition has a package nothing"):
        find_versions(definition, "nothing", store, "amd64")


GOOD = f"Package: a\nVersion: 1\nFilename: pool/a.deb\nSize: 5\nSHA256: {'0' * 64}\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SHA256", "SHA1", "without a checksum"),
        ("Size: 5", "Size: -5", "no size"),
        ("pool/", "../", "lies elsewhere"),
        ("pool/", "/", "lies elsewhere"),
        ("Filename", "File", "lies elsewhere"),
    ],
)
def test_malformed_stanza(old: str, new: str, message: str) -> None:
    assert parse_binary(GOOD).size == 5
    with pytest.raises(VerifyError, match=message):
        parse_binary(GOOD.replace(old, new))


def test_an_entry_without_a_name_and_one_behind_other_fields(tmp_path: Path) -> None:
    (tmp_path / "Packages").write_text(
        f"\n\nPriority: optional\nSection: misc\n{GOOD}\n\n{GOOD.replace(': a', ': b')}"
    )
    found = list(read_packages(tmp_path / "Packages", lambda n: n == "a", repository="r"))
    assert [(p.name, p.repository) for p in found] == [("a", "r")]
    (tmp_path / "Packages").write_text(GOOD.replace("Package:", "Package:\nNot:"))
    with pytest.raises(VerifyError, match="without a checksum"):
        list(read_packages(tmp_path / "Packages", lambda _: True))


@given(st.text())
def test_any_text_is_a_package_or_refused(text: str) -> None:
    with suppress(VerifyError):
        parse_binary(text)
