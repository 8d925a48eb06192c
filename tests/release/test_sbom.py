"""Bills of material: valid by the formats' own libraries, the same bytes from the same lock."""

from __future__ import annotations

import json

import pytest

from tegu.release.sbom import cyclonedx, purl, spdx

from .conftest import lock_of, package

LOCK = lock_of(
    package("libssl3t64", "3.5.7-1~deb13u3", "openssl"),
    package("g++", "4:14.2.0-1", "gcc-defaults", "1.220"),
)


def test_package_urls_name_the_source() -> None:
    assert purl(LOCK.system[1]) == (
        "pkg:deb/debian/g%2B%2B@4%3A14.2.0-1?arch=amd64&upstream=gcc-defaults%401.220"
    )


def test_cyclonedx_is_valid_and_the_same_again() -> None:
    pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed")
    text = cyclonedx(LOCK, "tegu", "26.11")
    assert text == cyclonedx(LOCK, "tegu", "26.11")
    body = json.loads(text)
    assert body["bomFormat"] == "CycloneDX" and body["specVersion"] == "1.6"
    assert {c["name"] for c in body["components"]} == {"libssl3t64", "g++"}


def test_spdx_is_valid_and_the_same_again(tmp_path) -> None:
    pytest.importorskip("spdx_tools", reason="spdx-tools is not installed")
    text = spdx(LOCK, "tegu", "26.11")
    assert text == spdx(LOCK, "tegu", "26.11")
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    (tmp_path / "x.spdx.json").write_text(text)
    document = parse_file(str(tmp_path / "x.spdx.json"))
    assert validate_full_spdx_document(document) == []
    assert [p.name for p in document.packages] == ["tegu", "libssl3t64", "g++"]
