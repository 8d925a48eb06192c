"""The verbs: one line for every mistake, exit codes, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tegu.cli import main

PLAN = 'name = "p"\n[boot]\nwait = "ssh"\n[[step]]\nname = "a"\nrun = "{}"\n'


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["boot"], 2, "needs an image or a kernel"),
        (["boot", "/none.qcow2"], 2, "cannot read the image /none.qcow2: No such file"),
        (["boot", "/etc/passwd"], 2, "is not a disk image"),
        (["boot", "/etc/passwd", "--forward", "x"], 2, "not a forward"),
        (["boot", "/etc/passwd", "--memory", "x"], 2, "not a size"),
        (["boot", "/etc/passwd", "--bus", "ide"], 2, "no such bus"),
        (["boot", "/etc/passwd", "--user-data", "/etc/passwd"], 2, "cloud-init would ignore this"),
        (["boot", "/etc/passwd", "--key", "/none"], 2, "cannot read the key /none"),
        (["boot", "x", "--ephemeral", "--persist", "a"], 2, "exclude each other"),
        (["boot", "/etc/passwd", "--persist", "A B"], 2, "is not a disk image"),
        (["ssh", "nope"], 10, "no machine named nope runs"),
        (["console", "nope"], 10, "no machine named nope runs"),
        (["stop", "nope"], 10, "no machine named nope runs"),
        (["cp", "a", "b"], 2, "one of the two paths must be on a machine"),
        (["cp", "x:a", "y:b"], 2, "one of the two paths must be on a machine"),
        (["cp", "/none", "nope:x"], 2, "/none does not exist"),
        (["cp", "nope:x", "/tmp"], 10, "no machine named nope runs"),
        (["test"], 2, "what to test"),
        (["test", "/none.toml", "local"], 3, "cannot read the plan /none.toml"),
    ],
)
def test_mistakes(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tegu: ")
    assert said in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("verb", ["boot", "machines", "ssh", "cp", "console", "stop", "test"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Example: tegu {verb}" in " ".join(capsys.readouterr().out.split())


def test_no_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machines", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["machines"]) == 0
    assert capsys.readouterr().out == ""


def test_a_plan_that_holds_and_one_that_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(PLAN.format("true"))
    bad.write_text(PLAN.format("echo oops >&2; exit 9"))
    assert main(["test", str(good), "local", "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split("\t")[:2] == ["local", "2"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["p.html", "p.json", "p.xml"]

    assert main(["test", str(bad), "local", "--junit", str(tmp_path / "j.xml")]) == 11
    captured = capsys.readouterr()
    assert "exit code 9, not 0: oops" in captured.out
    assert "tegu: p: 1 steps did not pass" in captured.err
    assert "<failure" in (tmp_path / "j.xml").read_text()

    assert main(["test", str(bad), "local", "--json"]) == 11
    body = json.loads(capsys.readouterr().out)
    assert body["passed"] is False
    assert body["counts"] == {"passed": 1, "failed": 1, "error": 0, "skipped": 0}


def test_variables_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "v.toml"
    plan.write_text('[variable.w]\nhelp = "a word"\n'.join(PLAN.split("[boot]")[:1]) + (
        '[variable.w]\nhelp = "a word"\n[[step]]\nname = "a"\nrun = "test {{ w }} = b"\n'
    ))  # fmt: skip
    assert main(["test", str(plan), "local"]) == 2
    assert "needs values for: w" in capsys.readouterr().err
    assert main(["test", str(plan), "local", "--var", "w=b"]) == 0
    assert main(["test", str(plan), "local", "--var", "x=b"]) == 2
