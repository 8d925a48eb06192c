"""Vulnerabilities by source and version, against a sample whose answers were worked out by hand."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.errors import TeguError, UsageError, VerifyError
from tegu.packages.version import compare
from tegu.release.cve import (
    examine,
    make_advisories,
    packages_of_lock,
    packages_of_sbom,
    packages_of_status,
    read_security_data,
    read_statements,
    to_osv,
    to_oval,
    to_updateinfo,
)
from tegu.release.cve.data import cvss3, of_score

from .conftest import lock_of, package

LOCK = lock_of(
    package("libssl3t64", "3.5.7-1~deb13u3", "openssl"),
    package("openssl", "3.5.7-1~deb13u3"),
    package("zlib1g", "1:1.3.dfsg+really1.3.1-1+deb13u1", "zlib"),
    package("sudo", "1.9.16p2-3+deb13u2"),
    package("libc6", "2.41-12+deb13u4", "glibc"),
    package("linux-image-6.12.107+deb13-cloud-amd64", "6.12.107-1", "linux-signed-amd64",
            "6.12.107+1"),
)  # fmt: skip
# In the tracker's own shape; which of them hold was decided by reading the versions.
TRACKER = {
    "openssl": {
        # Fixed by a later revision than is installed: it is there, and can be mended.
        "CVE-2026-0001": {"description": "a", "releases": {"trixie": {
            "status": "resolved", "fixed_version": "3.5.7-1~deb13u4", "urgency": "high"}}},
        # Fixed by the very version that is installed.
        "CVE-2026-0002": {"releases": {"trixie": {
            "status": "resolved", "fixed_version": "3.5.7-1~deb13u3", "urgency": "high"}}},
        # The tilde: 3.5.7-1 is newer than 3.5.7-1~deb13u3.
        "CVE-2026-0003": {"releases": {"trixie": {
            "status": "resolved", "fixed_version": "3.5.7-1", "urgency": "not yet assigned"}}},
        # Never affected this release.
        "CVE-2026-0004": {"releases": {"trixie": {
            "status": "resolved", "fixed_version": "0", "urgency": "unimportant"}}},
        # Of another release only.
        "CVE-2026-0005": {"releases": {"bookworm": {"status": "open", "urgency": "high"}}},
    },
    "zlib": {
        # The epoch: 1:1.3... is newer than 9.
        "CVE-2026-0006": {"releases": {"trixie": {
            "status": "resolved", "fixed_version": "9", "urgency": "medium"}}},
        "CVE-2026-0007": {"releases": {"trixie": {"status": "open", "urgency": "low"}}},
    },
    "sudo": {"CVE-2026-0008": {"releases": {"trixie": {
        "status": "undetermined", "urgency": "not yet assigned"}}}},
    # A binary package's name is not its source's.
    "libc6": {"CVE-2026-0009": {"releases": {"trixie": {"status": "open", "urgency": "high"}}}},
    "nothing-here": {"CVE-2026-0010": {"releases": {"trixie": {"status": "open"}}}},
}  # fmt: skip
THERE = {
    ("CVE-2026-0001", "openssl", "fixable", "high"),
    ("CVE-2026-0003", "openssl", "fixable", "unknown"),
    ("CVE-2026-0007", "zlib", "open", "low"),
    ("CVE-2026-0008", "sudo", "open", "unknown"),
}


def write(path: Path, body: object) -> Path:
    path.write_text(json.dumps(body))
    return path


@pytest.fixture
def tracker(tmp_path: Path) -> Path:
    return write(tmp_path / "tracker.json", TRACKER)


def found(packages, paths, **more) -> set[tuple[str, str, str, str]]:
    data = read_security_data(paths, "trixie")
    return {(f.id, f.source, f.status, f.severity)
            for f in examine(packages, data, **more).findings}  # fmt: skip


def test_the_sample_has_no_false_answer(tracker) -> None:
    assert found(packages_of_lock(LOCK), [tracker]) == THERE


def test_a_status_file_gives_the_same(tracker, tmp_path) -> None:
    stanzas = [
        f"Package: {p.name}\nStatus: install ok installed\nVersion: {p.version}\n"
        f"Source: {p.source} ({p.source_version})\nDescription: x\n Version: no\n"
        for p in LOCK.system
    ]
    stanzas.append("Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n")
    status = tmp_path / "status"
    status.write_text("\n".join(stanzas))
    assert found(packages_of_status(status), [tracker]) == THERE
    (tmp_path / "empty").write_text("")
    with pytest.raises(UsageError, match="no status file"):
        packages_of_status(tmp_path / "empty")


def test_an_sbom_gives_the_same(tracker, tmp_path) -> None:
    from tegu.release.sbom import cyclonedx, spdx

    for name, write_sbom in (("x.cdx.json", cyclonedx), ("x.spdx.json", spdx)):
        path = tmp_path / name
        path.write_text(write_sbom(LOCK, "tegu", "26.11"))
        assert found(packages_of_sbom(path), [tracker]) == THERE
    with pytest.raises(UsageError, match="names no Debian packages"):
        packages_of_sbom(write(tmp_path / "empty.json", {}))
    with pytest.raises(UsageError, match="neither"):
        packages_of_sbom(write(tmp_path / "list.json", []))


def test_osv_says_the_same_in_its_own_words(tmp_path) -> None:
    def record(name: str, source: str, events: list, **more) -> dict:
        return {"id": f"DSA-{name}", "aliases": [name], "affected": [{
            "package": {"ecosystem": "Debian:13", "name": source},
            "ranges": [{"type": "ECOSYSTEM", "events": events}], **more}]}  # fmt: skip

    records = [
        record("CVE-2026-0001", "openssl", [{"introduced": "0"}, {"fixed": "3.5.7-1~deb13u4"}],
               ecosystem_specific={"urgency": "high"}),
        record("CVE-2026-0002", "openssl", [{"introduced": "0"}, {"fixed": "3.5.7-1~deb13u3"}]),
        # Came with a later version than is installed.
        record("CVE-2026-0011", "sudo", [{"introduced": "1.9.17"}]),
        record("CVE-2026-0012", "sudo", [{"introduced": "1.9.16p1"}, {"fixed": "1.9.18"}]),
        {**record("CVE-2026-0013", "sudo", [{"introduced": "0"}]), "withdrawn": "2026-01-01"},
        {**record("CVE-2026-0014", "zlib", []), "affected": [{"package": {
            "ecosystem": "Debian:13", "name": "zlib"},
            "versions": ["1:1.3.dfsg+really1.3.1-1+deb13u1"]}]},
    ]  # fmt: skip
    expected = {
        ("CVE-2026-0001", "openssl", "fixable", "high"),
        ("CVE-2026-0012", "sudo", "fixable", "unknown"),
        ("CVE-2026-0014", "zlib", "open", "unknown"),
    }
    packages = packages_of_lock(LOCK)
    assert found(packages, [write(tmp_path / "all.json", records)]) == expected
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number, one in enumerate(records):
            archive.writestr(f"{number}.json", json.dumps(one))
    assert found(packages, [tmp_path / "all.zip"]) == expected
    (tmp_path / "records").mkdir()
    for number, one in enumerate(records):
        write(tmp_path / "records" / f"{number}.json", one)
    assert found(packages, [tmp_path / "records"]) == expected


def test_exploited_running_and_vex(tracker, tmp_path) -> None:
    kev = write(tmp_path / "kev.json", {"vulnerabilities": [{"cveID": "CVE-2026-0007"}]})
    vex = write(tmp_path / "vex.json", {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "statements": [
            {"vulnerability": {"name": "CVE-2026-0001"}, "status": "not_affected",
             "justification": "vulnerable_code_not_present",
             "products": [{"@id": "pkg:deb/debian/openssl@3.5.7?arch=source"}]},
            {"vulnerability": {"name": "CVE-2026-0003"}, "status": "not_affected",
             "impact_statement": "not for this", "products": ["pkg:deb/debian/other"]},
        ],
    })  # fmt: skip
    data = read_security_data([tracker, kev], "trixie")
    done = examine(
        packages_of_lock(LOCK), data, read_statements(vex), running={"zlib1g": True, "sudo": False}
    )
    by_id = {f.id: f for f in done.findings}
    assert done.findings[0].id == "CVE-2026-0007"  # exploited comes first
    assert by_id["CVE-2026-0007"].running and not by_id["CVE-2026-0008"].running
    assert by_id["CVE-2026-0001"].status == "not_affected"
    assert "vulnerable_code_not_present" in by_id["CVE-2026-0001"].reason
    assert by_id["CVE-2026-0003"].status == "fixable"  # the statement is about another package


def test_the_age_is_that_of_the_oldest_file(tracker, tmp_path) -> None:
    kev = write(tmp_path / "kev.json", {"vulnerabilities": []})
    os.utime(tracker, (1_000_000, 1_000_000))
    data = read_security_data([tracker, kev], "trixie")
    assert data.date == 1_000_000
    assert data.age_days(1_000_000 + 86400) == 1


def test_advisories_for_what_a_release_mends(tracker) -> None:
    data = read_security_data([tracker], "trixie")
    before = examine(packages_of_lock(LOCK), data)
    mended = lock_of(
        *(p for p in LOCK.system if p.source != "openssl"),
        package("libssl3t64", "3.5.7-1~deb13u4", "openssl"),
        package("openssl", "3.5.7-1~deb13u4"),
    )
    (one,) = make_advisories(before, mended, year=2026, first=7, date=1_795_000_000)
    assert (one.id, one.cves, one.severity) == ("TEGU-2026:0007", ("CVE-2026-0001",), "high")
    # What OSV says of it is found again by our own reader, in the old packages and not in the new.
    record = json.loads(to_osv(one))
    assert record["affected"][0]["ranges"][0]["events"][1] == {"fixed": "3.5.7-1~deb13u4"}
    xml = to_updateinfo([one], "26.11.1")
    import lxml.etree

    tree = lxml.etree.fromstring(xml.encode())
    assert tree.findtext("update/severity") == "Important"
    assert {p.get("name") for p in tree.iter("package")} == {"libssl3t64", "openssl"}
    oval = lxml.etree.fromstring(to_oval([one], date=1_795_000_000).encode())
    space = "{http://oval.mitre.org/XMLSchema/oval-definitions-5#linux}"
    assert [e.text for e in oval.iter(f"{space}evr")] == ["0:3.5.7-1~deb13u4"] * 2


@pytest.mark.parametrize(
    ("vector", "score", "severity"),
    [
        # Examples of the specification's calculator, worked out with it.
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8, "critical"),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N", 6.1, "medium"),
        ("CVSS:3.0/AV:L/AC:L/PR:L/UI:N/S:U/C:H/I:H/A:H", 7.8, "high"),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N", 0.0, "unimportant"),
        ("CVSS:4.0/AV:N", None, "unknown"),
    ],
)
def test_scores(vector, score, severity) -> None:
    assert cvss3(vector) == score
    assert of_score(score) == severity


@pytest.mark.parametrize(
    "body",
    ["", "[1]", '{"a": 1}', '{"a": {"b": 1}}', '{"openssl": {"CVE-1": {"releases": {"trixie": '
     '{"status": "resolved"}}}}}', '[{"id": "x"}]', "{}"],
)  # fmt: skip
def test_data_that_is_none_is_one_line(tmp_path, body) -> None:
    path = tmp_path / "data.json"
    path.write_text(body)
    with pytest.raises(VerifyError) as caught:
        read_security_data([path], "trixie")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "statement",
    [
        {"vulnerability": "CVE-1", "status": "fine"},
        {"vulnerability": "CVE-1", "status": "not_affected"},
        {"vulnerability": "CVE-1", "status": "not_affected", "justification": "because"},
        {"status": "fixed"},
        7,
    ],
)
def test_vex_without_a_reason_is_refused(tmp_path, statement) -> None:
    body = {"@context": "https://openvex.dev/ns/v0.2.0", "statements": [statement]}
    with pytest.raises(VerifyError, match="no OpenVEX document"):
        read_statements(write(tmp_path / "vex.json", body))


versions = st.from_regex(r"\A[0-9]{1,2}(\.[0-9]{1,2}){0,2}(~rc1|\+b1)?(-[0-9]{1,2})?\Z")


@settings(max_examples=150)
@given(installed=versions, fixed=versions)
def test_affected_is_what_is_older_than_the_fix(tmp_path_factory, installed, fixed) -> None:
    path = tmp_path_factory.mktemp("data") / "tracker.json"
    write(path, {"x": {"CVE-2026-1": {"releases": {"trixie": {
        "status": "resolved", "fixed_version": fixed}}}}})  # fmt: skip
    there = found(packages_of_lock(lock_of(package("x", installed))), [path])
    assert bool(there) is (compare(installed, fixed) < 0)


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda c: st.lists(c, max_size=3) | st.dictionaries(
                        st.sampled_from(["affected", "id", "releases", "trixie", "status",
                                         "package", "ranges", "events", "vulnerabilities"]),
                        c, max_size=4), max_leaves=12))  # fmt: skip
def test_any_json_is_data_or_a_clear_error(tmp_path_factory, body) -> None:
    path = write(tmp_path_factory.mktemp("data") / "d.json", body)
    try:
        read_security_data([path], "trixie")
    except TeguError as e:
        assert "\n" not in e.message
