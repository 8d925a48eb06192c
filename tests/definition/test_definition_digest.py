"""Digests: stable where nothing that counts has changed, different where it has."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tegu.definition import digest, load, overlay_entries, section_digests, to_toml
from tegu.errors import DefinitionError

TEXT = """overlay = ["files"]
[system]
name = "acme"
version = "1"
[base]
keyring = "keys.gpg"
[packages]
install = ["vim", "less"]
local = ["own.deb"]
[[file]]
path = "/etc/motd"
source = "motd"
[[file]]
path = "/etc/issue"
content = "hello"
"""

APT = """[apt]
sources = 'base'
mirror = 'https://mirror.example/debian'
security_mirror = 'https://mirror.example/security'
[packages]"""


@pytest.fixture
def definition(write):
    return write(
        {
            "os/tegu.toml": TEXT,
            "os/keys.gpg": "key",
            "os/own.deb": "deb",
            "os/motd": "motd",
            "os/files/etc/a": "a",
            "os/files/etc/b": "b",
            "os/files/empty/.gitkeep": "",
        }
    )


def sections(path: Path) -> dict[str, str]:
    return section_digests(load(path))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert set(before) == set(after) == {"packages", "tree", "image"}
    return {name for name in before if before[name] != after[name]}


def test_it_is_the_same_for_the_same_definition_elsewhere(definition, tmp_path):
    before = load(definition)
    shutil.copytree(tmp_path / "os", tmp_path / "elsewhere", symlinks=True)
    for path in (tmp_path / "elsewhere").rglob("*"):
        os.utime(path, (0, 0))  # times do not count
    after = load(tmp_path / "elsewhere" / "tegu.toml")
    assert section_digests(before) == section_digests(after)
    assert digest(before) == digest(after)
    assert len(digest(before)) == 64


def test_it_survives_being_written_out_in_full(definition, write):
    before = load(definition)
    assert digest(load(write({"again.toml": to_toml(before)}))) == digest(before)


def test_it_is_the_same_forever():
    from tegu.definition import Definition

    # Kept locks and caches are found by these: a change here throws all of them away.
    small = Definition.model_validate({"system": {"name": "a", "version": "1"}})
    assert section_digests(small) == {
        "packages": "58b6196ad7983f7e65c466d74fb2c980da5c09569836bd181a57032772f21050",
        "tree": "0b537a60c7d79124c452b5b5bc15d8dd9f71fbaa65fc6b14c8eefcd31f0402f3",
        "image": "a78e04db3642ccc280905d21922868621186766ee94481e33fb4ce0e678c9a19",
    }


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('install = ["vim", "less"]', 'install = ["less", "vim"]', set()),
        ('install = ["vim", "less"]', 'install = ["vim"]', {"packages"}),
        ("[packages]", "[packages]\nrecommends = false", set()),
        ("[packages]", "[packages]\nrecommends = true", {"packages"}),
        ("[base]", '[base]\nsuites = ["sid"]', {"packages"}),
        ("[base]", '[base]\nmirror = "http://mirror.example/debian"', {"packages"}),
        ('version = "1"', 'version = "2"', {"tree", "image"}),
        ('version = "1"', 'version = "1"\nhostname = "h"', {"tree"}),
        ('content = "hello"', 'content = "hullo"', {"tree"}),
        ('content = "hello"', 'content = "hello"\nmode = "0600"', {"tree"}),
        ("[packages]", "[image]\nsize = '9G'\n[packages]", {"image"}),
        ("[packages]", "[sysctl]\nvm.x = 1\n[packages]", {"tree"}),
        ("[packages]", "[units]\nmask = ['a.service']\n[packages]", {"tree"}),
        ("[packages]", "[[user]]\nname = 'a'\n[packages]", {"tree"}),
        ("[packages]", "[hardening]\nsetuid = []\n[packages]", {"tree"}),
        ("[packages]", "[trim]\npaths = ['/a']\n[packages]", {"tree"}),
        ("[packages]", "[cloud]\ndatasources = ['Ec2']\n[packages]", {"tree"}),
        ("[packages]", "[kernel]\ncmdline = ['quiet']\n[packages]", {"tree"}),
        ("[packages]", "[kernel]\npackage = 'linux-image-amd64'\n[packages]", {"packages", "tree"}),
        ("[packages]", APT, {"tree"}),
        ("overlay =", "plan = ['motd']\noverlay =", set()),
        ('version = "1"', 'version = "1"\narchitecture = "arm64"', {"packages", "tree", "image"}),
    ],
)
def test_an_option_counts_in_its_sections(definition, old, new, expected):
    before = sections(definition)
    assert old in TEXT
    definition.write_text(TEXT.replace(old, new, 1))
    assert changed(before, sections(definition)) == expected


def _executable(os_dir: Path) -> None:
    (os_dir / "files/etc/a").chmod(0o755)


def _group_writable(os_dir: Path) -> None:
    (os_dir / "files/etc/a").chmod(0o664)


def _symlink(os_dir: Path) -> None:
    (os_dir / "files/etc/c").symlink_to("a")


def _directory(os_dir: Path) -> None:
    (os_dir / "files/etc/d").mkdir()


def _rename(os_dir: Path) -> None:
    (os_dir / "files/etc/a").rename(os_dir / "files/etc/z")


def _executable_source(os_dir: Path) -> None:
    (os_dir / "motd").chmod(0o755)


def _write(name: str, text: str = "other"):
    def write(os_dir: Path) -> None:
        (os_dir / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_write("files/etc/a"), {"tree"}),
        (_write("files/etc/new"), {"tree"}),
        (_write("files/etc/.gitkeep"), set()),
        (_executable, {"tree"}),
        (_group_writable, set()),
        (_symlink, {"tree"}),
        (_directory, {"tree"}),
        (_rename, {"tree"}),
        (_write("motd"), {"tree"}),
        (_executable_source, {"tree"}),
        (_write("own.deb"), {"packages"}),
        (_write("keys.gpg"), {"packages"}),
    ],
)
def test_the_content_of_files_counts(definition, tmp_path, change, expected):
    before = sections(definition)
    change(tmp_path / "os")
    assert changed(before, sections(definition)) == expected


def test_content_inline_or_in_a_file_is_the_same(write):
    system = '[system]\nname = "a"\nversion = "1"\n[[file]]\npath = "/etc/x"\n'
    inline = write({"a.toml": system + 'content = "same"\n'})
    in_file = write({"b.toml": system + 'source = "x"\n', "x": "same"})
    one, other = load(inline), load(in_file)
    Path("x").chmod(0o644)
    assert section_digests(one) == section_digests(other)
    empty = load(write({"c.toml": system + 'content = ""\n'}))
    assert section_digests(one)["tree"] != section_digests(empty)["tree"]


def test_a_keyring_of_the_machine_counts_by_name_only(write, monkeypatch):
    path = write('[system]\nname = "a"\nversion = "1"\n')
    before = sections(path)
    # By name the module is hidden behind its function.
    module = sys.modules["tegu.definition.digest"]
    monkeypatch.setattr(module, "_file", lambda path: f"other {path}")
    assert sections(path) == before


def test_overlay_entries_are_sorted_with_modes_and_targets(tmp_path):
    (tmp_path / "etc/b").mkdir(parents=True)
    (tmp_path / "etc/b/run").write_text("#!/bin/sh\n")
    (tmp_path / "etc/b/run").chmod(0o700)
    (tmp_path / "etc/a").write_text("")
    (tmp_path / "etc/a").chmod(0o600)
    (tmp_path / "etc/.gitkeep").write_text("")
    (tmp_path / "lib").symlink_to("/nowhere")
    (tmp_path / os.fsdecode(b"\xff")).write_text("")
    found = [(e.path, e.kind, e.mode, e.target) for e in overlay_entries(tmp_path)]
    assert found == [
        ("etc", "directory", 0o755, None),
        ("etc/a", "file", 0o644, None),
        ("etc/b", "directory", 0o755, None),
        ("etc/b/run", "file", 0o755, None),
        ("lib", "symlink", 0o777, "/nowhere"),
        (os.fsdecode(b"\xff"), "file", 0o644, None),
    ]


def test_a_pipe_or_socket_in_an_overlay_is_refused(definition, tmp_path):
    os.mkfifo(tmp_path / "os/files/pipe")
    with pytest.raises(DefinitionError, match="os/files/pipe: is neither a file, a directory nor"):
        sections(definition)
    (tmp_path / "os/files/pipe").unlink()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "os/files/socket"))
        with pytest.raises(DefinitionError, match="neither"):
            sections(definition)


def test_a_file_that_has_gone_is_an_error(definition, tmp_path):
    loaded = load(definition)
    shutil.rmtree(tmp_path / "os/files")
    with pytest.raises(DefinitionError, match="os/files: can not be read: No such file"):
        digest(loaded)
    (tmp_path / "os/motd").unlink()
    with pytest.raises(DefinitionError, match="os/motd: can not be read: No such file"):
        digest(loaded)
