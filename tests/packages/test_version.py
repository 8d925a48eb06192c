"""Versions, compared as dpkg compares them."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.packages.version import compare, sort_key

part = st.text(alphabet="019azAZ.+~", min_size=0, max_size=8)
versions = st.builds(
    lambda epoch, start, upstream, revision: f"{epoch}{start}{upstream}{revision}",
    st.sampled_from(["", "0:", "1:", "12:"]),
    st.sampled_from("0129"),
    part,
    st.one_of(st.just(""), st.builds("-{}".format, part.filter(bool))),
)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.0~rc1", "1.0"),
        ("1.0", "1.0-1"),
        ("1.9", "1.10"),
        ("9", "1:1"),
        ("1.0-1", "1.0-1+b1"),
        ("1.0-1~bpo13+1", "1.0-1"),
        ("2a", "2b"),
        ("1.0a", "1.0+"),
        ("1.0~~", "1.0~"),
        ("257.13-1~deb13u1", "257.13-1"),
    ],
)
def test_known_orders(older: str, newer: str) -> None:
    assert compare(older, newer) < 0 < compare(newer, older)
    assert sorted([newer, older], key=sort_key) == [older, newer]


@pytest.mark.parametrize(("one", "other"), [("1.0", "0:1.0"), ("1.00", "1.0"), ("1-0", "1")])
def test_known_equals(one: str, other: str) -> None:
    assert compare(one, other) == 0


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")
@settings(max_examples=300, deadline=None)
@given(versions, versions)
def test_as_dpkg_does(one: str, other: str) -> None:
    def dpkg(relation: str) -> bool:
        done = subprocess.run(
            ["dpkg", "--compare-versions", one, relation, other], capture_output=True
        )
        return done.returncode == 0

    expected = -1 if dpkg("lt") else 1 if dpkg("gt") else 0
    assert compare(one, other) == expected


@given(versions, versions, versions)
def test_it_is_an_order(a: str, b: str, c: str) -> None:
    assert compare(a, a) == 0
    assert compare(a, b) == -compare(b, a)
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0
