"""Which files a patch concerns."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.kernel.livepatch.module import kbuild_text, main_source
from tegu.kernel.livepatch.sources import files_of, units

FILES = {
    "include/linux/top.h": "#include <linux/low.h>\n",
    "include/linux/low.h": "int low;\n",
    "fs/a.c": "#include <linux/top.h>\n",
    "fs/b.c": '#include "local.h"\n',
    "fs/local.h": "#  include <linux/low.h>\n",
    "fs/c.c": "#include <linux/other.h>\n",
    "net/local.h": "int l;\n",
    "include/asm-generic/bits.h": "",
    "fs/d.c": "#include <asm/bits.h>\n",
    "fs/all.c": '#include "part.c"\n',
    "fs/part.c": "#include <linux/part.h>\n",
    "include/linux/part.h": "",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def patch(path: Path, *names: tuple[str, str]) -> Path:
    path.write_text("".join(f"--- {a}\n+++ {b}\n@@ -1 +1 @@\n-x\n+y\n" for a, b in names))
    return path


def test_files(tmp_path: Path) -> None:
    found = files_of(patch(tmp_path / "p", ("a/fs/a.c", "b/fs/a.c"), ("a/fs/x.h", "b/fs/x.h")))
    assert found == ["fs/a.c", "fs/x.h"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("/dev/null", "b/fs/new.c"), "adds fs/new.c"),
        (("a/fs/old.c", "/dev/null"), "removes fs/old.c"),
        (("a/fs/Kconfig", "b/fs/Kconfig"), "fs/Kconfig, which is not C"),
        (("a/../etc/x.c", "b/../etc/x.c"), "leads out of the tree"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, names: tuple[str, str], reason: str) -> None:
    with pytest.raises(TeguError, match=reason):
        files_of(patch(tmp_path / "p", names))


@given(st.text(max_size=200))
def test_any_text_is_no_patch_or_one(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("p") / "p"
    path.write_text(text, errors="replace")
    try:
        assert files_of(path)
    except TeguError as e:
        assert "\n" not in e.message or "\n" in text


def test_a_header_concerns_all_who_read_it(tree: Path) -> None:
    assert units(["include/linux/low.h"], tree, FILES) == ["fs/a.c", "fs/b.c"]
    assert units(["fs/local.h"], tree, FILES) == ["fs/b.c"]
    assert units(["include/asm-generic/bits.h"], tree, FILES) == ["fs/d.c"]


def test_a_source_that_is_part_of_another(tree: Path) -> None:
    assert units(["fs/part.c"], tree, FILES) == ["fs/all.c"]
    assert units(["include/linux/part.h"], tree, FILES) == ["fs/all.c"]


def test_what_is_not_known_or_not_built(tree: Path) -> None:
    assert units(["fs/a.c"], tree, None) == ["fs/a.c"]
    with pytest.raises(UnsupportedError, match=r"fs/z\.c is not in this kernel"):
        units(["fs/z.c"], tree, FILES)
    with pytest.raises(UnsupportedError, match="what the kernel compiled with it is not known"):
        units(["fs/local.h"], tree, None)


def test_no_patch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        files_of(tmp_path / "none")


def test_generated_sources_quote() -> None:
    assert "main.o part0.o part1.o" in kbuild_text("livepatch_x", ["part0", "part1"])
    assert '"a \\"b\\""' in main_source([], 'a "b"', release="6.1-x", build="#1")
