"""`tegu lock` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tegu.cli import main
from tegu.definition import load
from tegu.packages.tools import tools_for


@pytest.fixture
def project(repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A definition in the working directory, on top of a repository that has the tools."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TEGU_STORE", str(tmp_path / "cli-store"))
    path = folder / "tegu.toml"
    path.write_text(
        f"""[system]
name = "acme"
version = "1"

[base]
suites = ["rock"]
mirror = "file://{repository.root}"
keyring = "{repository.keys.home}/archive.gpg"

[kernel]
package = "none"

[image]
formats = ["tar"]

[packages]
install = ["apple"]
tegu = false
"""
    )
    for name in tools_for(load(path)):
        repository.add(name)
    repository.add("apple", "1", Installed_Size="2048")
    repository.publish()
    return path


def test_lock_then_nothing_then_update(project, repository, capsys) -> None:
    assert main(["lock"]) == 0
    first = capsys.readouterr().out
    assert "tegu.lock written: 1 packages" in first
    before = Path("tegu.lock").read_bytes()
    stamp = Path("tegu.lock").stat().st_mtime_ns
    assert main(["lock"]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert Path("tegu.lock").stat().st_mtime_ns == stamp
    Path("old.lock").write_bytes(before)
    repository.add("apple", "2", Installed_Size="1024")
    repository.publish()
    assert main(["lock", "--update", "apple"]) == 0
    shown = capsys.readouterr().out
    assert "system\tapple\tupgraded\t1\t2\t0 B\t-1.0 MiB\n" in shown
    assert main(["lock", "--diff", "old.lock", "tegu.lock"]) == 0
    assert "apple\tupgraded\t1\t2" in capsys.readouterr().out
    assert main(["lock", "--diff", "tegu.lock", "old.lock", "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)
    (change,) = difference["changes"]
    assert change["kind"] == "downgraded"
    assert change["installed"] == 1 << 20
    assert difference["installed"] == 1 << 20


def test_added_and_removed_are_shown(project, repository, capsys) -> None:
    main(["lock"])
    Path("old.lock").write_bytes(Path("tegu.lock").read_bytes())
    repository.add("pear", "1")
    repository.publish()
    text = project.read_text()
    project.write_text(text.replace('install = ["apple"]', 'install = ["pear"]'))
    capsys.readouterr()
    assert main(["lock", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    kinds = {c["name"]: c["kind"] for c in answer["difference"]["changes"]}
    assert kinds == {"apple": "removed", "pear": "added"}
    assert answer["changed"]
    assert answer["system"] == 1


def test_each_profile_has_a_lock_of_its_own(project, repository) -> None:
    repository.add("pear")
    repository.publish()
    text = project.read_text() + '\n[profile.big.packages]\ninstall = ["pear"]\n'
    project.write_text(text)
    assert main(["lock"]) == 0
    assert main(["lock", "--profile", "big"]) == 0
    small, big = Path("tegu.lock").read_text(), Path("tegu.big.lock").read_text()
    assert '"pear"' not in small
    assert '"pear"' in big


def test_check(project, capsys) -> None:
    assert main(["lock", "--check"]) == 4
    assert "does not exist" in capsys.readouterr().err
    main(["lock"])
    assert main(["lock", "--check"]) == 0
    assert main(["lock", "--check", "--json"]) == 0
    text = project.read_text()
    project.write_text(text.replace("install", 'exclude = ["pear"]\ninstall'))
    capsys.readouterr()
    assert main(["lock", "--check"]) == 4
    errors = capsys.readouterr().err
    assert "is out of date" in errors
    assert "run `tegu lock`" in errors


def test_offline_and_another_output(project, repository, tmp_path: Path, capsys) -> None:
    import shutil

    assert main(["lock", "--offline"]) == 6
    assert main(["lock"]) == 0
    shutil.rmtree(repository.root)
    other = tmp_path / "elsewhere" / "my.lock"
    assert main(["lock", "--offline", "-o", str(other)]) == 0
    assert other.read_bytes() == Path("tegu.lock").read_bytes()
    assert main(["lock", "--update"]) == 6
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["lock", "apple"], 2, "package names go with --update"),
        (["lock", "--diff", "tegu.lock"], 2, "--diff takes two lock files"),
        (["lock", "--diff", "tegu.lock", "no.lock"], 4, "does not exist"),
        (["lock", "-f", "nowhere.toml"], 3, "nowhere.toml"),
        (["lock", "--update", "nothing"], 2, "nothing is not in the lock"),
    ],
)
def test_wrong_usage(project, capsys, arguments: list[str], code: int, why: str) -> None:
    main(["lock"])
    capsys.readouterr()
    assert main(arguments) == code
    assert why in capsys.readouterr().err
    assert main([*arguments, "--json"]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == code


def test_a_damaged_lock_stays_as_it_is(project, capsys) -> None:
    Path("tegu.lock").write_text("not a lock\n")
    assert main(["lock"]) == 4
    assert "tegu.lock:1: " in capsys.readouterr().err
    assert Path("tegu.lock").read_text() == "not a lock\n"


def test_an_impossible_definition_leaves_the_lock(project, capsys) -> None:
    main(["lock"])
    before = Path("tegu.lock").read_bytes()
    text = project.read_text()
    project.write_text(text.replace('"apple"', '"aple"'))
    assert main(["lock"]) == 5
    errors = capsys.readouterr().err
    assert "there is no package aple" in errors
    assert "did you mean apple?" in errors
    assert Path("tegu.lock").read_bytes() == before


def test_help_has_examples(capsys) -> None:
    assert main(["lock", "--help"]) == 0
    assert "tegu lock --update openssl" in capsys.readouterr().out
