"""The gate: a planted regression, a planted CVE, a missing review are refused, with reasons."""

from __future__ import annotations

import time

import pytest

from tegu.errors import ReleaseError
from tegu.release import judge
from tegu.release.gate import load_rules, override, read_gate, require_open
from tegu.release.manifest import File, Manifest, ReportNote
from tegu.release.numbers import Number

from .conftest import small_release

NOW = time.time()
IMAGE = File("images/server/tegu.qcow2", "image", 1, "0" * 64)
GOOD = {
    "files": (IMAGE,),
    "reports": (ReportNote("acceptance", True, 94, 0, "tegu.qcow2"),),
    "figures": {"boot seconds server": 10.0, "image bytes server": 100.0},
    "cves": {"date": int(NOW), "packages": 1, "sources": 1, "findings": []},
    "marks": ("release-notes: alice",),
}
FINDING = {
    "id": "CVE-2026-1",
    "source": "openssl",
    "status": "fixable",
    "fixed": "3.5.7-2",
    "severity": "high",
    "exploited": False,
}


@pytest.fixture
def release(shop):
    def make(number: str = "26.11.1", **changes) -> tuple:
        manifest = small_release(shop, number, **{**GOOD, **changes})
        return shop.work(Number.parse(number)), manifest

    return make


def failed(gate) -> dict[str, str]:
    return {c.name: c.reason for c in gate.checks if not c.passed}


def test_a_good_release_passes(release) -> None:
    work, manifest = release()
    gate = judge(work, manifest, None, load_rules())
    assert failed(gate) == {} and gate.open
    assert require_open(work) == gate


def test_a_slower_boot_is_refused(release) -> None:
    work, manifest = release(figures={**GOOD["figures"], "boot seconds server": 11.5})
    _, before = release("26.11")
    gate = judge(work, manifest, before, load_rules())
    assert failed(gate) == {"figure boot seconds server": "11.5, 10 before: 1.150 of at most 1.1"}
    with pytest.raises(
        ReleaseError, match=r"the gate is closed: figure boot seconds server: 11\.5"
    ):
        require_open(work)


def test_a_figure_that_vanished_is_refused(release) -> None:
    work, manifest = release(figures={"image bytes server": 100.0})
    _, before = release("26.11")
    assert failed(judge(work, manifest, before, load_rules())) == {
        "figure boot seconds server": "the release before had it, this has not"
    }


@pytest.mark.parametrize(
    ("finding", "refused"),
    [
        ({}, True),
        ({"severity": "low"}, False),
        ({"severity": "unknown"}, True),
        ({"status": "open", "fixed": None}, False),
        ({"status": "open", "fixed": None, "exploited": True}, True),
        ({"status": "not_affected"}, False),
        ({"status": "not_affected", "exploited": True}, False),
    ],
)
def test_a_cve_that_must_be_mended_is_refused(release, finding, refused) -> None:
    cves = {**GOOD["cves"], "findings": [{**FINDING, **finding}]}
    work, manifest = release(cves=cves)
    gate = judge(work, manifest, None, load_rules())
    assert gate.open is not refused
    if refused:
        assert failed(gate) == {"vulnerabilities": "1 must be mended: CVE-2026-1 in openssl"}


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({"reports": ()}, "plan acceptance", "no report"),
        (
            {"reports": (ReportNote("acceptance", False, 94, 2, "tegu.qcow2"),)},
            "plan acceptance",
            "2 of 94 steps failed",
        ),
        (
            {"reports": (ReportNote("acceptance", True, 94, 0, "other.qcow2"),)},
            "plan acceptance",
            "no image of this release",
        ),
        ({"cves": None}, "vulnerabilities", "no security data"),
        (
            {"cves": {**GOOD["cves"], "date": int(NOW - 9 * 86400)}},
            "security data",
            "9.0 days old, at most 7",
        ),
        ({"marks": ()}, "review release-notes", "nobody"),
    ],
)
def test_what_is_missing_is_refused(release, changes, name, why) -> None:
    work, manifest = release(**changes)
    gate = judge(work, manifest, None, load_rules(), now=NOW)
    assert list(failed(gate)) == [name]
    assert why in failed(gate)[name]


def test_an_override_is_kept_with_its_reason_until_the_release_changes(release, shop) -> None:
    work, manifest = release(marks=())
    with pytest.raises(ReleaseError, match="has not seen"):
        require_open(work)
    judge(work, manifest, None, load_rules())
    with pytest.raises(ReleaseError, match="needs a reason"):
        override(work, "review release-notes", "later")
    with pytest.raises(ReleaseError, match="no check 'nothing' failed"):
        override(work, "nothing", "because of that")
    override(work, "review release-notes", "only one of us is awake")
    again = judge(work, manifest, None, load_rules())
    assert again.open and "only one of us is awake" in again.checks[-1].override
    Manifest(**{**{f: getattr(manifest, f) for f in manifest.__slots__}, "date": "x"}).write(
        work / "manifest.json"
    )
    with pytest.raises(ReleaseError, match="has not seen"):
        require_open(work)
    assert read_gate(work) is not None


@pytest.mark.parametrize(
    "text", ["plans = 1\nworse = 2", "[cve]\nfixed = 'bad'", "x = 1", "[worse]\na = -1", "["]
)
def test_odd_rules_are_one_line(tmp_path, text) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(ReleaseError, match=r"gate\.toml"):
        load_rules(path)
