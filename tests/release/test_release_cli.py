"""The verbs of releases and vulnerabilities, as a person or a program calls them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tegu.cli import main
from tegu.packages import LockedRepository
from tegu.release.workshop import Workshop

from .conftest import lock_of, package, small_release


def test_a_release_by_its_verbs(tmp_path: Path, shop: Workshop, capsys) -> None:
    place = ["--releases", str(shop.root)]
    rules = tmp_path / "gate.toml"
    rules.write_text('[review]\nmarks = ["notes"]\n')
    small_release(shop, "26.11")
    assert main(["release", "gate", "26.11", "--rules", str(rules), *place]) == 15
    assert "the gate is closed: review notes" in capsys.readouterr().err
    assert main(["release", "sign", "26.11", *place]) == 15
    assert main(["release", "mark", "26.11", "notes", "--by", "alice", *place]) == 0
    assert main(["release", "gate", "26.11", "--rules", str(rules), *place]) == 0
    assert main(["release", "sign", "26.11", *place]) == 0
    assert main(["release", "publish", "26.11", *place]) == 0
    capsys.readouterr()
    assert main(["release", "show", *place, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["number"] == "26.11" and row["state"] == "published"
    root = shop.public / "metadata/1.root.json"
    out = ["--state", str(tmp_path / "state"), "-o", str(tmp_path / "got")]
    fetch = ["release", "fetch", shop.public.as_uri(), "26.11", "--root", str(root), *out]
    assert main(fetch) == 0
    assert (tmp_path / "got/notes.md").read_text() == "notes"
    assert main(["release", "publish", *place]) == 0
    assert main(["release", "mark", "26.11", "notes", "--by", "bob", *place]) == 15
    assert main(["release", "show", "26.12", *place]) == 15
    assert main(["release", "show", "26", *place]) == 15
    assert "is no release number" in capsys.readouterr().err
    assert main(["release", "init", str(shop.root)]) == 15
    assert main(["release", "show", "--releases", str(tmp_path)]) == 15


def test_vulnerabilities_by_the_verb(tmp_path: Path, capsys) -> None:
    lock = tmp_path / "tegu.lock"
    mirror = LockedRepository("trixie", "machine:mirror", "trixie", ("main",), "0" * 64, 1)
    one = lock_of(package("zlib1g", "1:1.3-1", "zlib"))
    replace(one, repositories=(mirror,)).write(lock)
    data = tmp_path / "tracker.json"
    entry = {"status": "resolved", "fixed_version": "1:1.3-2", "urgency": "high"}
    data.write_text(json.dumps({"zlib": {"CVE-2026-1": {"releases": {"trixie": entry}}}}))
    command = ["cve", str(lock), "--security", str(data)]
    assert main([*command, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [f["id"] for f in body["findings"]] == ["CVE-2026-1"] and body["age_days"] < 1
    assert main([*command, "--fail"]) == 7
    assert "CVE-2026-1 in zlib by 1:1.3-2" in capsys.readouterr().err
    assert main([*command, "--suite", "bookworm"]) == 7
    assert "nothing of bookworm" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["prepare", "gate", "sign", "publish", "show", "diff", "fetch"])
def test_each_verb_helps_with_an_example(verb, capsys) -> None:
    assert main(["release", verb, "--help"]) == 0
    assert "tegu release" in capsys.readouterr().out


def test_recipes_are_listed(capsys) -> None:
    assert main(["pkg", "ls", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["tegu-release"]["variables"] == ["keyring", "uri"]
    assert main(["pkg", "build", "no-such-recipe"]) == 14
    assert "no such recipe" in capsys.readouterr().err
    assert main(["pkg", "build", "tegu", "--format", "zip"]) == 2
    assert main(["pkg", "build", "tegu", "--set", "x"]) == 2
