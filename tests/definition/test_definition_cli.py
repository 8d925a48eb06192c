"""`tegu definition` and `tegu new`, from the front door."""

from __future__ import annotations

import json
import tomllib

import pytest
from typer.testing import CliRunner

from tegu.cli import definition as cli
from tegu.cli.front import main

SYSTEM = '[system]\nname = "acme"\nversion = "1"\n'


def test_check_is_short_when_all_is_right(write, capsys):
    write(SYSTEM)
    assert main(["definition", "check"]) == 0
    assert capsys.readouterr().out == "tegu.toml: acme 1: right\n"


def test_check_reports_problems_on_stderr_with_the_exit_code(write, capsys):
    path = write({"other.toml": SYSTEM + "[image]\nsise = 1\n"})
    assert main(["definition", "check", str(path)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "tegu: other.toml:5: image.sise: unknown key",
        "      did you mean 'size'?",
    ]


def test_every_problem_has_a_line_of_its_own(write, capsys):
    write(SYSTEM + "[image]\nsise = 1\n[cloud]\nx = 1\n")
    assert main(["definition", "check"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "tegu: tegu.toml:5: image.sise: unknown key",
        "      2 problems:",
        "      tegu.toml:5: image.sise: unknown key (did you mean 'size'?)",
        "      tegu.toml:7: cloud.x: unknown key (known keys: datasources, default_user)",
    ]


def test_check_as_json_lists_every_problem(write, capsys):
    write(SYSTEM + "[image]\nsise = 1\n[profile.x.image]\nsize = 'big'\n")
    assert main(["definition", "check", "--json"]) == 3
    captured = capsys.readouterr()
    body = json.loads(captured.out)
    assert captured.err == ""
    assert body["ok"] is False
    found = [(p["line"], p["key"], p["message"], p["hint"]) for p in body["problems"]]
    assert found[0] == (5, "image.sise", "unknown key", "did you mean 'size'?")
    assert found[1][:2] == (7, "image.size")


def test_check_as_json_when_all_is_right(write, capsys):
    path = write(SYSTEM)
    assert main(["definition", "check", "-f", str(path), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["ok"], body["problems"]) == (True, [])
    assert len(body["digest"]) == 64


def test_check_of_one_profile_leaves_the_others(write):
    write(SYSTEM + "[profile.good.image]\nsize = '2G'\n[profile.bad.image]\nsise = 1\n")
    assert main(["definition", "check", "--profile", "good"]) == 0
    assert main(["definition", "check", "--profile", "bad"]) == 3
    assert main(["definition", "check"]) == 3


def test_syntax_errors_as_json(write, capsys):
    write("[system\n")
    assert main(["definition", "check", "--json"]) == 3
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["line"], problem["column"]) == (1, 8)


def test_show_prints_a_summary(write, capsys):
    write(SYSTEM + "[profile]\ndefault = 'x'\n[profile.x.image]\nsize = '2G'\n")
    assert main(["definition", "show"]) == 0
    rows = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert rows["name"] == "acme"
    assert rows["profile"] == "x"
    assert rows["image"] == "2G ext4, qcow2"


def test_show_resolved_is_toml_and_json_is_json(write, capsys):
    write(SYSTEM)
    assert main(["definition", "show", "--resolved"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["system"]["name"] == "acme"
    assert main(["definition", "show", "--json", "--arch", "arm64"]) == 0
    assert json.loads(capsys.readouterr().out)["system"]["architecture"] == "arm64"


def test_show_origins(write, capsys):
    write(SYSTEM)
    assert main(["definition", "show", "--resolved", "--origins"]) == 0
    assert 'name = "acme"  # tegu.toml:2' in capsys.readouterr().out
    assert main(["definition", "show", "--origins"]) == 2


def test_an_unknown_architecture_or_profile(write, capsys):
    write(SYSTEM)
    assert main(["definition", "show", "--arch", "arm"]) == 2
    assert "did you mean 'arm64'?" in capsys.readouterr().err
    assert main(["definition", "show", "--profile", "x"]) == 3


def test_a_missing_definition_as_json(write, capsys, tmp_path):
    write({"other.toml": ""})
    assert main(["definition", "show", "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "DefinitionError"
    assert error["message"] == "tegu.toml: no such file"


def test_schema(capsys):
    assert main(["definition", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "tegu.toml"


def test_new(checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "myos", "--profile", "minimal"]) == 0
    assert capsys.readouterr().out == "myos: tegu.toml, README.md, files/.gitkeep\n"
    assert main(["definition", "check", "-f", "myos/tegu.toml"]) == 0
    assert main(["new", "myos"]) == 3
    assert main(["new", "myos", "--dir", "other", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["directory"] == "other"
    assert main(["new", "My OS"]) == 2


@pytest.mark.parametrize(
    ("app", "argv"),
    [
        (cli.app, ["--help"]),
        (cli.app, ["show", "--help"]),
        (cli.app, ["check", "--help"]),
        (cli.app, ["schema", "--help"]),
        (cli.new_app, ["--help"]),
    ],
)
def test_every_command_has_help_with_an_example(app, argv):
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == 0
    assert "Example: tegu " in result.output
