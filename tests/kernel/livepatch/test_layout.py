"""Structures laid out otherwise, found in what the compiler says of them."""

from __future__ import annotations

import shutil

import pytest
from tests.kernel.livepatch.conftest import Compile

from tegu.kernel.livepatch.layout import changed_layouts, layouts

TEXT = """
struct kept { int a; };
struct moved { int a; short b; short c; };
struct kept k; struct moved m;
"""


def test_a_member_that_moved(compile_c: Compile) -> None:
    if shutil.which("pahole") is None:
        pytest.skip("no pahole (Debian package dwarves)")
    before = compile_c("before", TEXT, "-g")
    # Neither the size nor a line of code changes.
    after = compile_c("after", "\n\n" + TEXT.replace("short b; short c", "short c; short b"), "-g")
    assert changed_layouts(before, after) == ["moved"]
    assert changed_layouts(before, before) == []


def test_layouts() -> None:
    text = (
        "struct a {\n\tint x; /* 0 4 */\n\n\t/* size: 4 */\n};\nunion b {\n\tstruct {\n\t} c;\n};\n"
    )
    assert list(layouts(text)) == ["a", "b"]
