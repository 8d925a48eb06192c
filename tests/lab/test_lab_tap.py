"""TAP: read as test programs write it, and held against what is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import DefinitionError
from tegu.lab.local import LocalMachine
from tegu.lab.plan import MachinePlan
from tegu.lab.plan_file import load_plan
from tegu.lab.runner import run_plan
from tegu.lab.tap import Known, judge, parse_tap

KSELFTEST = """\
TAP version 13
1..4
# timeout set to 45
# selftests: net: tls
# ok 1 global.nested
ok 1 selftests: net: tls
# selftests: net: tap
not ok 2 selftests: net: tap # exit=1
ok 3 selftests: net: tun # SKIP
not ok 4 selftests: net: slow # TIMEOUT 45 seconds
TAP version 13
1..1
ok 1 selftests: seccomp: seccomp_bpf
"""


def test_as_the_kernel_writes_it() -> None:
    tests, problems = parse_tap(KSELFTEST)
    assert problems == []
    assert [(t.name, t.outcome, t.directive) for t in tests] == [
        ("net: tls", "pass", ""),
        ("net: tap", "fail", "exit=1"),
        ("net: tun", "skip", "SKIP"),
        ("net: slow", "fail", "TIMEOUT 45 seconds"),
        ("seccomp: seccomp_bpf", "pass", ""),
    ]
    assert "# ok 1 global.nested" in tests[0].output
    assert "global.nested" not in tests[1].output


def test_what_scripts_say_of_their_parts() -> None:
    said = (
        "1..1\n# PASS: gretap\n# FAIL: ip6gretap\n# TEST: rule4 udp connect     [FAIL]\n"
        "#     TEST: rule4 del by pref    [ OK ]\nnot ok 1 selftests: net: rtnetlink.sh # exit=1\n"
    )
    (test,), _ = parse_tap(said)
    assert test.failed_inner() == ["ip6gretap", "rule4 udp connect"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no TAP"),
        ("ok 1 - a\n", "no TAP"),
        ("1..2\nok 1 - a\n", "2 tests were announced, 1 have a result"),
        ("1..1\nok 1 a\nok 2 b\n", "1 tests were announced, 2 have a result"),
        ("1..0\n", "no test ran"),
        ("1..1\nBail out! no memory\n", "gave up: no memory"),
    ],
)
def test_what_is_wrong_as_a_whole(text: str, problem: str) -> None:
    assert any(problem in p for p in parse_tap(text)[1])


def test_forms_of_a_name() -> None:
    tests, _ = parse_tap("1..4\nok 1 - with a dash\nok\nok 3 a#b\nnot ok 4 x # TODO later\n")
    assert [t.name for t in tests] == ["with a dash", "unnamed", "a#b", "x"]


@given(st.text())
def test_any_text(text: str) -> None:
    tests, problems = parse_tap(text)
    assert tests or problems
    assert len(judge(tests, [])[0]) == len(tests)


def test_surprises_both_ways() -> None:
    tests, _ = parse_tap(KSELFTEST)
    known = [
        Known("net: tls", "fail", "broken here"),  # but it passes
        Known("net: tap", "fail", "no tap"),
        Known("net: tun", "fail", "no tun"),  # but it is skipped
        Known("net: slow", "unstable", "timing"),
        Known("net: absent", "skip", "not there"),
    ]
    verdicts, absent = judge(tests, known)
    assert [v.status for v in verdicts] == ["failed", "skipped", "failed", "skipped", "passed"]
    assert verdicts[0].message == "net: tls: passed, although it is known to fail: broken here"
    assert verdicts[1].message == "known failure: no tap (exit=1)"
    assert "was skipped (SKIP), although it is known to fail" in verdicts[2].message
    assert absent == ["net: absent"]
    # Without the table every one that does not pass is a failure, a skip too.
    assert [v.status for v in judge(tests, [])[0]] == [
        "passed", "failed", "failed", "failed", "passed",
    ]  # fmt: skip


INNER = """\
1..1
# ok 1 one
# not ok 2 two
# # a line that has no endnot ok 3 three
# not ok 4 four # SKIP not here
# not ok 5 - five # TODO
not ok 1 selftests: cgroup: test_cpu # exit=1
"""


@pytest.mark.parametrize(
    ("inner", "status"), [((), "skipped"), (("two", "thr*"), "skipped"), (("two",), "failed")]
)
@pytest.mark.parametrize("expected", ["fail", "unstable"])
def test_only_what_is_known_inside(inner: tuple[str, ...], status: str, expected: str) -> None:
    tests, _ = parse_tap(INNER)
    assert tests[0].failed_inner() == ["two", "three"]
    known = Known("cgroup: test_cpu", expected, "why", inner)  # type: ignore[arg-type]
    ((verdict,), _) = judge(tests, [known])
    assert verdict.status == status
    assert ("failed in three, which nobody expects" in verdict.message) == (status == "failed")


PLAN = """
name = "tap"
[boot]
wait = "nothing"
[[step]]
name = "tests"
id = "tests"
run = "printf '1..2\\\\nok 1 a\\\\nnot ok 2 b # exit=1\\\\n'"
tap = true
known = [{ test = "b", expected = "%s", reason = "it is not ours" }]
[[step]]
name = "after"
needs = ["tests"]
run = "true"
"""


@pytest.mark.parametrize(
    ("expected", "statuses"),
    [
        ("fail", ["passed", "passed", "skipped", "passed"]),
        ("skip", ["failed", "passed", "failed", "skipped"]),
    ],
)
def test_each_test_is_a_result(tmp_path: Path, expected: str, statuses: list[str]) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN % expected)

    def machine(_: MachinePlan) -> LocalMachine:
        return LocalMachine()

    report = run_plan(load_plan(path), machine, subject="here")
    steps = [s for s in report.machines[0].steps if s.action != "boot"]
    assert [s.name for s in steps] == ["tests", "tests: a", "tests: b", "after"]
    assert [s.status for s in steps] == statuses
    assert report.passed == (expected == "fail")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tap = true\n", "", "known goes with `tap` only"),
        ('"fail"', '"maybe"', "expected"),
        ("[{ test", '[{ test = "b", expected = "fail", reason = "x" }, { test', "a test twice"),
        ('run = "printf', 'reboot = true\nstdin = "', "goes with `run` only"),
    ],
)
def test_plans_that_are_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text((PLAN % "fail").replace(old, new))
    with pytest.raises(DefinitionError, match=message):
        load_plan(path)
