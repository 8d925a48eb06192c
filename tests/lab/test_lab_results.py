"""Reports outlive the run: JSON and back, JUnit XML, a page for people."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from tegu.errors import UsageError
from tegu.lab.html import html_page
from tegu.lab.junit import junit_xml
from tegu.lab.results import MachineReport, Report, StepResult, as_json, read_report, write_report
from tegu.lab.testing import write_reports

NASTY = 'a <b> & "c" \x00\x1b[31m \ud800 \ufffe ]]> \U0001f98e'


def make(*statuses: str, text: str = "") -> Report:
    steps = tuple(
        StepResult(f"step {i} {text}", s, 1.5, f"why {text}" if s != "passed" else "",  # type: ignore[arg-type]
                   "run", f"run {text}", 1, 0, f"out {text}", f"err {text}")
        for i, s in enumerate(statuses)
    )  # fmt: skip
    machine = MachineReport("uefi", "uefi", "tcg", 1.7e9, 61, steps, "n", f"con {text}", "jour")
    return Report("acceptance", "All of it.", "image.qcow2", 1.7e9, 125.0, (machine,))


ALL = ("passed", "failed", "error", "skipped")


@pytest.mark.parametrize(
    ("statuses", "passed"),
    [
        (("passed",), True),
        (("passed", "skipped"), True),
        (("passed", "failed"), False),
        (("passed", "error"), False),
        (("skipped",), False),
        ((), False),
    ],
)
def test_when_a_report_passes(statuses: tuple[str, ...], passed: bool) -> None:
    assert make(*statuses).passed is passed
    assert as_json(make(*statuses))["passed"] is passed


def test_json_and_back(tmp_path: Path) -> None:
    report = make(*ALL, text='quotes " and \x00')
    write_report(report, tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == report


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', '{"format": "tegu-report-1"}'])
def test_what_is_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(UsageError, match="is not a report"):
        read_report(tmp_path / "r")
    with pytest.raises(UsageError, match="cannot read"):
        read_report(tmp_path / "none")


def check_junit(data: bytes, report: Report) -> None:
    """The elements, attributes and counts that readers of JUnit XML rely on."""
    root = etree.fromstring(data)
    assert root.tag == "testsuites"
    cases = root.findall("testsuite/testcase")
    assert int(root.get("tests")) == len(cases) == sum(len(m.steps) for m in report.machines)
    for element in (root, *root.findall("testsuite")):
        for attribute, tag in (
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            assert int(element.get(attribute)) == len(element.findall(f".//{tag}"))
        float(element.get("time"))
    for suite in root.findall("testsuite"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp"))
        assert suite.get("name")
        order = [child.tag for child in suite]
        assert order == ["properties", *["testcase"] * (len(order) - 3), "system-out", "system-err"]
    for case in cases:
        assert case.get("name")
        assert case.get("classname")
        float(case.get("time"))


def test_junit() -> None:
    report = make(*ALL)
    check_junit(junit_xml(report), report)
    root = etree.fromstring(junit_xml(report))
    failure = root.find(".//failure")
    assert failure.get("message") == "why "
    assert failure.get("type") == "expectation"
    assert root.find(".//skipped").get("message") == "why "


@given(st.text() | st.just(NASTY))
@settings(max_examples=150, deadline=None)
def test_any_output_makes_good_junit(text: str) -> None:
    report = make(*ALL, text=text)
    check_junit(junit_xml(report), report)


class Page(HTMLParser):
    """What a browser would make of the page: tags in balance, texts, and nothing from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.details: list[bool] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not [v for k, v in attrs if k in ("src", "href") and not (v or "").startswith("#")]
        if tag not in ("meta", "br"):
            self.stack.append(tag)
        if tag == "details":
            self.details.append("open" in dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_what_failed_first() -> None:
    page = Page()
    page.feed(html_page(make(*ALL, text="<script>alert(1)</script>")))
    assert page.stack == []
    # passed, failed, error, skipped, then the console and the journal
    assert page.details == [False, True, True, False, False, False]
    for text in ("acceptance failed", "2 min 05 s", "emulation", "why <script>alert(1)</script>"):
        assert text in page.text


@given(st.text() | st.just(NASTY))
@settings(max_examples=60, deadline=None)
def test_any_output_makes_a_good_page(text: str) -> None:
    page = Page()
    page.feed(html_page(make(*ALL, text=text)))
    assert page.stack == []


def test_reports_are_written_where_wanted(tmp_path: Path) -> None:
    report = make("passed")
    written = write_reports(
        report,
        directory=tmp_path / "out",
        junit=tmp_path / "j.xml",
        html=tmp_path / "sub" / "h.html",
    )
    assert [p.name for p in written] == [
        "acceptance.json", "acceptance.xml", "acceptance.html", "j.xml", "h.html",
    ]  # fmt: skip
    assert all(p.stat().st_size for p in written)


def test_odd_text_can_be_written(tmp_path: Path) -> None:
    write_reports(make(*ALL, text=NASTY), directory=tmp_path)
    assert read_report(tmp_path / "acceptance.json").plan == "acceptance"
