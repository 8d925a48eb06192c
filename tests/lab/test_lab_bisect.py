"""The search for the first bad candidate: exact, with skips, flickering tests and interruptions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.lab import BisectState, Found, Line, Trial, bisect_page, find_first_bad, found_json
from tegu.lab.bisect import Rule, Verdict, judge

QUESTION = {"good": "0", "bad": "9", "candidates": ["1", "9"], "test": "true"}


def failing_from(first_bad: int, skipped: frozenset[int] = frozenset()) -> Callable[[str], Trial]:
    def attempt(candidate: str) -> Trial:
        number = int(candidate)
        verdict: Verdict = "skip" if number in skipped else "bad" if number >= first_bad else "good"
        return Trial(verdict, 1.0, f"it was {verdict}")

    return attempt


@given(st.data())
def test_the_first_bad_one_is_found(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 200))
    first_bad = data.draw(st.integers(1, count - 1))
    skipped = data.draw(st.frozensets(st.integers(1, count - 2))) if count > 2 else frozenset()
    line = Line([str(n) for n in range(count)])
    found = find_first_bad(line, "0", str(count - 1), failing_from(first_bad, skipped))
    assert str(first_bad) in found.suspects
    # Only those before it are in doubt that could not be tried, without a gap.
    doubtful = [int(s) for s in found.suspects[:-1]]
    assert set(doubtful) <= skipped
    if not skipped:
        assert found.first_bad == str(first_bad)
        assert len(found.steps) <= 2 + math.ceil(math.log2(count))
    tried = [s.candidate for s in found.steps]
    assert len(tried) == len(set(tried))


def test_a_skipped_one_hides_the_answer() -> None:
    line = Line(list("012345"))
    found = find_first_bad(line, "0", "5", failing_from(3, frozenset({2, 3})))
    assert (found.first_bad, found.suspects) == (None, ("2", "3", "4"))
    assert [s.verdict for s in found.steps if s.candidate in "23"] == ["skip", "skip"]


@pytest.mark.parametrize(
    ("first_bad", "message"),
    [(0, "the good end 0 is bad: it was bad"), (99, "the bad end 5 is good: it was good")],
)
def test_ends_that_are_not_what_they_are_said_to_be(first_bad: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_first_bad(Line(list("012345")), "0", "5", failing_from(first_bad))


def test_an_end_that_cannot_be_tried() -> None:
    with pytest.raises(UsageError, match="the bad end 5 is not to be tried: it was skip"):
        find_first_bad(Line(list("012345")), "0", "5", failing_from(3, frozenset({5})))


@pytest.mark.parametrize(
    ("rule", "repeat", "verdicts", "wanted"),
    [
        ("any-bad", 3, "", None),
        ("any-bad", 3, "gg", None),
        ("any-bad", 3, "ggg", "good"),
        ("any-bad", 3, "gb", "bad"),
        ("any-bad", 3, "gs", "skip"),
        ("majority", 3, "gb", None),
        ("majority", 3, "gbg", "good"),
        ("majority", 3, "bb", "bad"),
        ("majority", 5, "bgbg", None),
        ("majority", 2, "gb", "bad"),
        ("majority", 2, "gg", "good"),
        ("majority", 3, "bs", "skip"),
        ("any-bad", 1, "g", "good"),
    ],
)
def test_several_trials(rule: Rule, repeat: int, verdicts: str, wanted: str | None) -> None:
    words: dict[str, Verdict] = {"g": "good", "b": "bad", "s": "skip"}
    assert judge([Trial(words[v], 0.0) for v in verdicts], repeat, rule) == wanted


def test_a_flickering_test_is_repeated() -> None:
    runs: dict[str, int] = {}

    def attempt(candidate: str) -> Trial:
        runs[candidate] = runs.get(candidate, 0) + 1
        # From 3 on it fails, but only each third time.
        bad = int(candidate) >= 3 and runs[candidate] % 3 == 0
        return Trial("bad" if bad else "good", 1.0)

    found = find_first_bad(Line(list("012345")), "0", "5", attempt, repeat=3)
    assert found.first_bad == "3"
    assert all(s.flaky == (int(s.candidate) >= 3) for s in found.steps)
    with pytest.raises(UsageError, match=r"the bad end 5 is good in 2 runs"):
        runs.clear()
        find_first_bad(Line(list("012345")), "0", "5", attempt, repeat=2)


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    line = Line([str(n) for n in range(50)])
    whole = find_first_bad(line, "0", "49", failing_from(17), repeat=2)
    total = sum(len(s.trials) for s in whole.steps)
    for after in range(total):
        path.unlink(missing_ok=True)
        left = after
        made = 0

        def attempt(candidate: str) -> Trial:
            nonlocal left, made
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            made += 1
            return failing_from(17)(candidate)

        state = BisectState(path, QUESTION, resume=False)
        with pytest.raises(KeyboardInterrupt):
            find_first_bad(line, "0", "49", attempt, repeat=2, on_trial=state.add)
        left = total
        again = BisectState(path, QUESTION, resume=True)
        found = find_first_bad(
            line, "0", "49", attempt, repeat=2, known=again.trials, on_trial=again.add
        )
        assert (found, made) == (whole, total)


def test_what_could_not_be_tried_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = BisectState(path, QUESTION, resume=False)
    state.add("1", Trial("skip", 1.0, "it did not start"))
    state.add("2", Trial("skip", 1.0, "the test exited with 125", 125))
    state.add("3", Trial("good", 1.0, "the test exited with 0", 0))
    assert sorted(BisectState(path, QUESTION, resume=True).trials) == ["2", "3"]


def test_state_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with pytest.raises(UsageError, match="there is no bisection to go on with"):
        BisectState(path, QUESTION, resume=True)
    BisectState(path, QUESTION, resume=False).add("1", Trial("good", 1.0, log="x" * 50_000))
    assert len(BisectState(path, QUESTION, resume=True).trials["1"][0].log) == 20_000
    with pytest.raises(UsageError, match="holds a bisection already"):
        BisectState(path, QUESTION, resume=False)
    with pytest.raises(UsageError, match="another bisection: test was 'true'"):
        BisectState(path, {**QUESTION, "test": "false"}, resume=True)
    for text in ("", "{}", "[]", '{"format": "tegu-bisect-1"}', '{"format": "x"}', "\0"):
        path.write_text(text)
        with pytest.raises(UsageError, match="is not a bisection of tegu"):
            BisectState(path, QUESTION, resume=True)


def test_report() -> None:
    found = find_first_bad(Line(list("012345")), "0", "5", failing_from(3, frozenset({4})))
    page = bisect_page(found, {**QUESTION, "test": "<b>"}, {"3": "net: <script>"})
    assert "The first bad one is" in page
    assert "&lt;b&gt;" in page
    assert "net: &lt;script&gt;" in page
    assert "<script>" not in page
    hidden = Found(found.steps, ("3", "4"))
    assert "one of these 2" in bisect_page(hidden, QUESTION)
    body = json.loads(json.dumps(found_json(QUESTION, found)))
    assert body["first_bad"] == "3"
    assert [s["verdict"] for s in body["steps"]][:2] == ["good", "bad"]


def test_questions_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="cannot be good and bad"):
        find_first_bad(Line(list("01")), "1", "1", failing_from(1))
    with pytest.raises(UsageError, match="at least once"):
        find_first_bad(Line(list("01")), "0", "1", failing_from(1), repeat=0)
    with pytest.raises(UsageError, match="named twice"):
        Line(list("00"))
