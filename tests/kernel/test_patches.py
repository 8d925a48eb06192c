"""The patch queue: heads that say why, and errors that say where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tegu.errors import BuildError, DefinitionError
from tegu.kernel.patches import apply_patch, read_queue, read_series

HEAD = """Subject: do it
Origin: ours
Upstream: none; nobody wants it
Reason: because
 of two lines
Test: tools/testing/selftests/x.sh

More words.
---
"""
DIFF = """--- a/file.c
+++ b/file.c
@@ -1,3 +1,3 @@
 one
-two
+deux
 three
@@ -10,3 +10,3 @@
 ten
-eleven
+onze
 twelve
"""
LINES = ["one", "two", "three", *(f"line {n}" for n in range(4, 10)), "ten", "eleven", "twelve"]


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    directory = tmp_path / "patches"
    directory.mkdir()
    (directory / "series").write_text("# ours\n0001-do.patch -p1  # why\n\n")
    (directory / "0001-do.patch").write_text(HEAD + DIFF)
    return directory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    directory.mkdir()
    (directory / "file.c").write_text("\n".join(LINES) + "\n")
    return directory


def test_read(queue: Path) -> None:
    (patch,) = read_queue(queue)
    assert patch.subject == "do it"
    assert patch.reason == "because of two lines"
    assert patch.commit is None
    assert read_series(queue / "series") == ["0001-do.patch"]


def test_upstream_commit(queue: Path) -> None:
    text = HEAD.replace("none; nobody wants it", "a" * 40) + DIFF
    (queue / "0001-do.patch").write_text(text)
    assert read_queue(queue)[0].commit == "a" * 40


@pytest.mark.parametrize("field", ["Subject", "Origin", "Upstream", "Reason", "Test"])
def test_field_missing(queue: Path, field: str) -> None:
    (queue / "0001-do.patch").write_text(HEAD.replace(f"{field}:", "Note:") + DIFF)
    with pytest.raises(DefinitionError, match=f"no field {field}"):
        read_queue(queue)


def test_file_missing_or_forgotten(queue: Path) -> None:
    (queue / "0002-more.patch").write_text(HEAD)
    with pytest.raises(DefinitionError, match=r"0002-more.patch: the series does not name"):
        read_queue(queue)
    (queue / "series").write_text("0001-do.patch\n0002-more.patch\n0003-absent.patch\n")
    with pytest.raises(DefinitionError, match=r"0003-absent.patch: No such file"):
        read_queue(queue)
    (queue / "series").unlink()
    with pytest.raises(DefinitionError, match="cannot read"):
        read_queue(queue)


def test_apply(queue: Path, tree: Path) -> None:
    apply_patch(queue / "0001-do.patch", tree)
    assert (tree / "file.c").read_text().split()[1] == "deux"
    assert sorted(p.name for p in tree.iterdir()) == ["file.c"]


def test_hunk_and_file_are_named_and_nothing_changes(queue: Path, tree: Path) -> None:
    before = (tree / "file.c").read_text().replace("eleven", "changed")
    (tree / "file.c").write_text(before)
    with pytest.raises(
        BuildError, match=r"0001-do.patch does not apply: file.c: hunk 2 at line 10"
    ):
        apply_patch(queue / "0001-do.patch", tree)
    assert (tree / "file.c").read_text() == before
    assert sorted(p.name for p in tree.iterdir()) == ["file.c"]


def test_there_already(queue: Path, tree: Path) -> None:
    apply_patch(queue / "0001-do.patch", tree)
    with pytest.raises(BuildError, match=r"file.c: the change is there already"):
        apply_patch(queue / "0001-do.patch", tree)


def test_file_is_gone(queue: Path, tree: Path) -> None:
    (tree / "file.c").unlink()
    with pytest.raises(BuildError, match=r"file.c is not in the tree"):
        apply_patch(queue / "0001-do.patch", tree)


def test_no_patch_at_all(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "x.patch").write_text("nothing\n")
    with pytest.raises(BuildError, match=r"x.patch does not apply"):
        apply_patch(tmp_path / "x.patch", tree)
