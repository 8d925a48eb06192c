"""Numbers and the dates that follow from them."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import ReleaseError
from tegu.release.numbers import Number, load_calendar, support_of


def test_numbers_are_ordered_as_releases_are() -> None:
    words = ["26.11", "26.11.1", "26.11.2", "26.11.10", "27.02"]
    assert sorted(map(Number.parse, reversed(words))) == [Number.parse(w) for w in words]
    assert [str(Number.parse(w)) for w in words] == words


@given(st.text(alphabet="0123456789.x -", max_size=12))
def test_any_text_is_a_number_or_refused(text) -> None:
    try:
        assert str(Number.parse(text)) == text
    except ReleaseError as e:
        assert "no release number" in e.message


def test_support_follows_from_data(tmp_path) -> None:
    assert support_of(Number.parse("26.11")).full == date(2027, 8, 31)
    assert support_of(Number.parse("26.11")).security == date(2031, 11, 30)  # long
    assert support_of(Number.parse("27.02.3")).security == date(2028, 8, 31)
    known = load_calendar()
    assert known.due(Number.parse("27.02")) and not known.due(Number.parse("27.03"))


@pytest.mark.parametrize("text", ["", "[cadence]\nmonths = 0\nfirst = '26.11'\n", "x", "[support]"])
def test_a_calendar_that_is_none_is_one_line(tmp_path, text) -> None:
    path = tmp_path / "releases.toml"
    path.write_text(text)
    with pytest.raises(ReleaseError, match=r"releases\.toml"):
        load_calendar(path)
