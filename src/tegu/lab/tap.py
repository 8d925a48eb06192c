"""The Test Anything Protocol: what a test program says of each of its tests, against what is known.

https://testanything.org/tap-version-13-specification.html, and the kernel's use of it
(Documentation/dev-tools/ktap.rst): nested output is a comment, `# SKIP`, `# TIMEOUT` and `# exit=N`
follow the name, and several runs may follow each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

__all__ = ["Expected", "Known", "TapTest", "Verdict", "judge", "parse_tap"]

Expected = Literal["fail", "skip", "unstable"]

_TEST = re.compile(r"(not ok|ok)\b *(\d*)(?: +- )? *(.*)")
# A program may have left its line before unfinished.
_INNER = re.compile(r"[#\s].*?not ok \d+ (?:- )?(.*?)(?: # ?(TODO|SKIP|XFAIL)?.*)?")
# What shell scripts of the kernel write: `FAIL: NAME` and `TEST: NAME   [FAIL]`.
_SCRIPT = re.compile(r"#\s*(?:FAIL: (.+?)|TEST: (.+?)\s*\[FAIL\])\s*")
_PLAN = re.compile(r"1\.\.(\d{1,6})(?: *#.*)?")
_BAIL = re.compile(r"Bail out!\s*(.*)")


@dataclass(frozen=True, slots=True)
class TapTest:
    """One test: its name, what came of it, the directive after it, and the lines before it."""

    name: str
    outcome: Literal["pass", "fail", "skip"]
    directive: str
    output: str

    def failed_inner(self) -> list[str]:
        """Return the tests inside it that failed: its own TAP, or lines of its script."""
        failed = []
        for line in self.output.splitlines():
            if (match := _INNER.fullmatch(line)) and match[2] is None:
                failed.append(match[1].strip())
            elif match := _SCRIPT.fullmatch(line):
                failed.append(match[1] or match[2])
        return failed


@dataclass(frozen=True, slots=True)
class Known:
    """What is expected of the test `name` instead of a pass, and why.

    "unstable" is for a test whose outcome does not follow from the code under test. With `inner`
    (patterns as of a shell) these are the only ones of the tests inside it that may fail.
    """

    name: str
    expected: Expected
    reason: str
    inner: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A test as judged: `status` as of a step; `message` says what is a surprise, or is known."""

    test: TapTest
    status: Literal["passed", "failed", "skipped"]
    message: str


def parse_tap(text: str) -> tuple[list[TapTest], list[str]]:
    """Return the tests of `text` and what is wrong with it as a whole (none ran, some are missing).

    A prefix "selftests: " is no part of a name.
    """
    tests: list[TapTest] = []
    problems: list[str] = []
    planned: int | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if match := _TEST.fullmatch(line):
            name, _, directive = match[3].partition(" # ") if " # " in match[3] else (
                match[3], "", "")  # fmt: skip
            name = name.strip().removeprefix("selftests: ") or match[2] or "unnamed"
            skipped = match[1] == "ok" and directive[:4].upper() == "SKIP"
            outcome: Literal["pass", "fail", "skip"] = (
                "skip" if skipped else "pass" if match[1] == "ok" else "fail"
            )
            tests.append(TapTest(name, outcome, directive.strip(), "\n".join(lines)))
            lines = []
        elif match := _PLAN.fullmatch(line):
            planned = (planned or 0) + int(match[1])
        elif match := _BAIL.fullmatch(line):
            problems.append(f"the tests gave up: {match[1] or 'no reason given'}")
        else:
            lines.append(line)
    if planned is None:
        problems.append("this is no TAP: no plan (1..N) in it")
    elif planned != len(tests):
        problems.append(f"{planned} tests were announced, {len(tests)} have a result")
    elif not tests:
        problems.append("no test ran")
    return tests, problems


def judge(tests: Sequence[TapTest], known: Sequence[Known]) -> tuple[list[Verdict], list[str]]:
    """Hold `tests` against what is known; returns the verdicts, and names that did not run.

    Anything but a pass is a failure unless it is known; what is known to fail and passes is a
    failure too, so that the table stays true.
    """
    table = {k.name: k for k in known}
    verdicts = [_verdict(test, table.get(test.name)) for test in tests]
    seen = {test.name for test in tests}
    return verdicts, [k.name for k in known if k.name not in seen]


def _verdict(test: TapTest, known: Known | None) -> Verdict:
    said = f" ({test.directive})" if test.directive else ""
    if known is None:
        if test.outcome == "pass":
            return Verdict(test, "passed", "")
        what = "was skipped, which nobody expects" if test.outcome == "skip" else "failed"
        return Verdict(test, "failed", f"{test.name}: {what}{said}")
    inner = test.failed_inner()
    more = [n for n in inner if not any(fnmatchcase(n, pattern) for pattern in known.inner)]
    if known.inner and test.outcome == "fail" and more:
        return Verdict(
            test, "failed", f"{test.name}: failed in {', '.join(more)}, which nobody expects{said}"
        )
    if known.expected == "unstable":
        if test.outcome == "pass":
            return Verdict(test, "passed", "")
        return Verdict(test, "skipped", f"unstable: {known.reason}{said}")
    if test.outcome == known.expected:
        how = "known failure" if known.expected == "fail" else "known to be skipped"
        return Verdict(test, "skipped", f"{how}: {known.reason}{said}")
    was = {"pass": "passed", "fail": "failed", "skip": "was skipped"}[test.outcome]
    return Verdict(
        test,
        "failed",
        f"{test.name}: {was}{said}, although it is known to {known.expected}: {known.reason}",
    )
