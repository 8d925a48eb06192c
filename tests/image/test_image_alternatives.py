"""Alternatives: which of them do not depend on the order of packages."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tegu.image.alternatives import links_in, parse_group, settled_paths

_PAGER = """\
auto
/usr/bin/pager
pager.1.gz
/usr/share/man/man1/pager.1.gz

/bin/more
50
/usr/share/man/man1/more.1.gz
/usr/bin/less
77
/usr/share/man/man1/less.1.gz

"""
_INSTALL = """\
# pager
update-alternatives --install /usr/bin/pager pager /bin/more 50 \\
  --slave /usr/share/man/man1/pager.1.gz pager.1.gz /usr/share/man/man1/more.1.gz
"""


def _paths(tmp_path: Path, record: str, *scripts: str) -> set[str]:
    folder = tmp_path / "var/lib/dpkg/alternatives"
    folder.mkdir(parents=True)
    (folder / "pager").write_text(record)
    return settled_paths(tmp_path, scripts)


def test_a_record_is_read_whole() -> None:
    group = parse_group("pager", _PAGER)
    assert group is not None
    assert group.choices == {"/bin/more": 50, "/usr/bin/less": 77}
    assert group.links["pager.1.gz"] == "/usr/share/man/man1/pager.1.gz"
    assert group.settled


@given(st.text())
def test_no_record_breaks_the_reader(text: str) -> None:
    group = parse_group("x", text)
    assert group is None or group.links


def test_one_best_choice_is_settled(tmp_path: Path) -> None:
    assert _paths(tmp_path, _PAGER, _INSTALL) == {
        "etc/alternatives/pager",
        "etc/alternatives/pager.1.gz",
        "usr/bin/pager",
        "usr/share/man/man1/pager.1.gz",
    }


def test_equal_priorities_depend_on_who_came_first(tmp_path: Path) -> None:
    assert _paths(tmp_path, _PAGER.replace("77", "50"), _INSTALL) == set()


def test_a_choice_made_by_hand_is_left_alone(tmp_path: Path) -> None:
    assert _paths(tmp_path, _PAGER.replace("auto", "manual"), _INSTALL) == set()


def test_a_script_that_used_it_may_have_seen_the_other_choice(tmp_path: Path) -> None:
    assert _paths(tmp_path, _PAGER, _INSTALL, "cat /etc/motd | pager\n") == set()


def test_a_layer_without_alternatives_has_none(tmp_path: Path) -> None:
    assert settled_paths(tmp_path, [_INSTALL]) == set()


def test_links_are_found_where_they_really_are(tmp_path: Path) -> None:
    _paths(tmp_path, _PAGER.replace("/usr/bin/pager", "/bin/pager"))
    link = tmp_path / "usr/bin/pager"
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc/alternatives/pager")
    assert links_in(tmp_path) == [link]
