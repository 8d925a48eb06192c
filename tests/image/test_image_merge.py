"""Merging unpacked packages: owners of paths, links among directories, conffiles, conflicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import BuildError
from tegu.image.merge import PathMap, merge
from tegu.image.unpack import Unpacked
from tegu.packages import LockedPackage


def make(tmp: Path, name: str, files: dict[str, str], **fields: str) -> Unpacked:
    """An unpacked package: `files` maps paths to content, `->target` for links, `/` for dirs."""
    directory = tmp / f"pkg-{name}"
    root = directory / "root"
    root.mkdir(parents=True)
    entries: list[list[object]] = []
    for path, content in files.items():
        full = root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        if content == "/":
            full.mkdir(exist_ok=True)
            entries.append([path, "d", 0o755, 0, 0, 0, "", ""])
        elif content.startswith("->"):
            full.symlink_to(content[2:])
            entries.append([path, "l", 0o777, 0, 0, 0, "", content[2:]])
        else:
            full.write_text(content)
            entries.append([path, "f", 0o644, 0, 0, len(content), "", ""])
    control = {"conffiles": fields.pop("conffiles")} if "conffiles" in fields else {}
    record = {"fields": {"Package": name, **fields}, "control": control, "entries": entries}
    (directory / "record.json").write_text(json.dumps(record))
    package = LockedPackage(name, "1", "all", 1, "0" * 64, "", "", name, "1")
    return Unpacked(package, directory)


def test_files_of_all_packages_are_linked_into_one_tree(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {"usr": "/", "usr/bin": "/", "usr/bin/a": "A"})
    b = make(tmp_path, "b", {"usr/bin/b": "B"})
    tree = tmp_path / "tree"
    tree.mkdir()
    merged = merge([a, b], tree)
    assert (tree / "usr/bin/a").read_text() == "A"
    assert (tree / "usr/bin/b").samefile(b.root / "usr/bin/b")
    assert merged.owner == {"usr/bin/a": "a", "usr/bin/b": "b"}


def test_paths_go_through_links_of_base_files(tmp_path: Path) -> None:
    base = make(tmp_path, "base-files", {"usr/lib": "/", "lib": "->usr/lib"})
    b = make(tmp_path, "aaa", {"lib/x.so": "X"})
    tree = tmp_path / "tree"
    tree.mkdir()
    merge([b, base], tree)
    assert (tree / "usr/lib/x.so").read_text() == "X"
    assert (tree / "lib").is_symlink()


def test_an_absolute_link_stays_inside_the_tree(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {"run": "/", "var/run": "->/run"})
    b = make(tmp_path, "b", {"var/run/tegu-test-file": "in"})
    tree = tmp_path / "tree"
    tree.mkdir()
    merge([a, b], tree)
    assert (tree / "run/tegu-test-file").read_text() == "in"
    assert not Path("/run/tegu-test-file").exists()


def test_the_same_path_twice_is_refused(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {"usr/x": "A"})
    b = make(tmp_path, "b", {"usr/x": "B"})
    tree = tmp_path / "tree"
    tree.mkdir()
    with pytest.raises(BuildError, match="/usr/x is in the packages a and b"):
        merge([a, b], tree)


@pytest.mark.parametrize("replacer", ["a", "b"])
def test_the_replacer_keeps_the_path(tmp_path: Path, replacer: str) -> None:
    other = {"a": "b", "b": "a"}[replacer]
    a = make(tmp_path, "a", {"usr/x": "a"}, **({"Replaces": "b (<< 2)"} if replacer == "a" else {}))
    b = make(tmp_path, "b", {"usr/x": "b"}, **({"Replaces": "a"} if replacer == "b" else {}))
    tree = tmp_path / "tree"
    tree.mkdir()
    merged = merge([a, b], tree)
    assert (tree / "usr/x").read_text() == replacer
    assert merged.lost == {other: {"/usr/x"}}


def test_conffiles_wait_for_configuration(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {"etc/a.conf": "x"}, conffiles="/etc/a.conf\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    merge([a], tree)
    assert not (tree / "etc/a.conf").exists()
    assert (tree / "etc/a.conf.dpkg-new").read_text() == "x"


def test_a_circle_of_links_is_refused() -> None:
    with pytest.raises(BuildError, match="too many levels"):
        PathMap({"a": "b", "b": "a"}).real("a/x")


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "a/c", "b/c", "d"]),
        st.sampled_from(["b", "../b", "/b/c", "../../..", "d/..", "."]),
    ),
    st.sampled_from(["a/x", "a/c/x", "b/c/d/x", "d/x"]),
)
def test_no_link_leads_out_of_the_tree(links: dict[str, str], path: str) -> None:
    try:
        real = PathMap(links).real(path)
    except BuildError:
        return
    assert not real.startswith(("/", ".."))
    assert "/../" not in f"/{real}/"
