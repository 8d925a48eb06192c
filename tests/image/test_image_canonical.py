"""Canonical trees, manifests, lint: the same content is the same tree, and no twins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tegu.definition import Definition
from tegu.image.canonical import canonicalise, clamp_times
from tegu.image.dpkgdb import paragraphs
from tegu.image.lint import lint
from tegu.image.manifest import (
    Item,
    compare,
    manifest,
    read_manifest,
    tree_digest,
    write_manifest,
)

STATUS = """\
Package: zsh
Status: install ok installed
Architecture: amd64

Package: libc6
Status: install ok installed
Multi-Arch: same
Architecture: amd64
"""


def definition() -> Definition:
    return Definition.model_validate({"system": {"name": "small", "version": "1"}})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("etc/ssh", "var/lib/dpkg/triggers", "var/log", "tmp", "root", "usr/bin"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shadow").write_text("root:*:20000::::::\n")
    (root / "etc/gshadow").write_text("root:*::\n")
    (root / "var/lib/dpkg/status").write_text(STATUS)
    return root


def test_litter_and_identity_are_removed(tree: Path) -> None:
    litter = [
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_rsa_key.pub",
        "etc/passwd-",
        "var/log/dpkg.log",
        "tmp/left",
        "root/.bash_history",
    ]
    for name in litter:
        (tree / name).write_text("x")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    canonicalise(tree, [])
    assert [name for name in litter if (tree / name).exists()] == []
    assert (tree / "etc/machine-id").read_bytes() == b""


def test_the_status_file_is_sorted_and_loses_nothing(tree: Path) -> None:
    before = paragraphs(tree / "var/lib/dpkg/status")
    canonicalise(tree, [])
    text = (tree / "var/lib/dpkg/status").read_text()
    assert text.index("Package: libc6") < text.index("Package: zsh")
    assert paragraphs(tree / "var/lib/dpkg/status") == before


def test_diversions_are_sorted_as_triples(tree: Path) -> None:
    path = tree / "var/lib/dpkg/diversions"
    path.write_text("/b\n/b.real\npkg\n/a\n/a.real\n:\n")
    canonicalise(tree, [])
    assert path.read_text() == "/a\n/a.real\n:\n/b\n/b.real\npkg\n"


def test_canonical_twice_is_canonical_once(tree: Path) -> None:
    canonicalise(tree, [])
    clamp_times([tree], 1_700_000_000)
    once = manifest(tree)
    canonicalise(tree, [])
    clamp_times([tree], 1_700_000_000)
    assert compare(once, manifest(tree)) == []


def test_times_are_set_back_not_forward(tree: Path) -> None:
    old = tree / "usr/bin/old"
    old.touch()
    os.utime(old, (1000, 1000))
    new = tree / "usr/bin/new"
    new.touch()
    clamp_times([tree], 1_700_000_000)
    assert old.stat().st_mtime == 1000
    assert new.stat().st_mtime == 1_700_000_000
    assert (tree / "usr").stat().st_mtime == 1_700_000_000


def test_a_manifest_survives_writing_and_tells_every_difference(tree: Path, tmp_path: Path) -> None:
    (tree / "usr/bin/a").write_text("a")
    (tree / "usr/bin/b").write_text("b")
    (tree / "usr/bin/l").symlink_to("a")
    (tree / "usr/bin/odd\nna\\nme").touch()
    before = manifest(tree)
    write_manifest(tmp_path / "m", before)
    assert read_manifest(tmp_path / "m") == before
    (tree / "usr/bin/a").write_text("A")
    (tree / "usr/bin/b").chmod(0o700)
    (tree / "usr/bin/l").unlink()
    (tree / "usr/bin/c").touch()
    found = {d.path: d.what for d in compare(before, manifest(tree))}
    assert found["usr/bin/a"].startswith(("content", "mtime"))
    assert "mode 644 -> 700" in found["usr/bin/b"]
    assert found["usr/bin/c"] == "added"
    assert found["usr/bin/l"] == "removed"
    assert tree_digest(before) != tree_digest(manifest(tree))


def test_hard_links_are_part_of_the_tree(tree: Path) -> None:
    (tree / "usr/bin/a").write_text("a")
    os.link(tree / "usr/bin/a", tree / "usr/bin/b")
    links = {i.path: i.link for i in manifest(tree)}
    assert links["usr/bin/b"] == "usr/bin/a"
    assert links["usr/bin/a"] == ""


@pytest.mark.parametrize(
    ("path", "finding"),
    [
        ("etc/ssh/ssh_host_ed25519_key", "would be the same on every machine"),
        ("var/lib/systemd/random-seed", "would be the same on every machine"),
        ("var/lib/cloud/instance/id", "would be the same on every machine"),
        ("etc/thing.conf.dpkg-new", "left behind by the package manager"),
        ("var/log/syslog", "a trace of the build"),
    ],
)
def test_lint_refuses_twins_and_traces(tree: Path, path: str, finding: str) -> None:
    target = tree / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("x")
    assert any(finding in f for f in lint(tree, manifest(tree), definition()))


def test_lint_finds_what_is_wrong_with_accounts_modes_and_packages(tree: Path) -> None:
    (tree / "etc/shadow").write_text("root::20000::::::\n")
    (tree / "usr/bin/open").touch(mode=0o666)
    (tree / "usr/bin/open").chmod(0o666)
    (tree / "etc/machine-id").write_text("abc\n")
    status = (tree / "var/lib/dpkg/status").read_text()
    (tree / "var/lib/dpkg/status").write_text(status.replace("ok installed", "ok unpacked", 1))
    items = [*manifest(tree), Item("usr/bin/strange", "f", "644", 4711, 0, 0, 0, "")]
    findings = "\n".join(lint(tree, items, definition()))
    for part in (
        "the account root has an empty password",
        "/usr/bin/open can be written by everybody",
        "/etc/machine-id is not empty",
        "zsh is not installed properly",
        "belongs to user 4711",
    ):
        assert part in findings


def test_lint_holds_setuid_to_the_list(tree: Path) -> None:
    (tree / "usr/bin/su").touch()
    (tree / "usr/bin/su").chmod(0o4755)
    strict = Definition.model_validate(
        {"system": {"name": "small", "version": "1"}, "hardening": {"setuid": []}}
    )
    assert any("not in hardening.setuid" in f for f in lint(tree, manifest(tree), strict))
    assert not any("setuid" in f for f in lint(tree, manifest(tree), definition()))
