"""Accepted deviations, and what comes of the checker's answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tegu.errors import BuildError, DefinitionError, UnsupportedError
from tegu.kernel.hardening import check_hardening, read_accepted
from tegu.kernel.recipe import default_recipe

ANSWER = [
    {"option_name": "CONFIG_A", "type": "kconfig", "desired_val": "y", "check_result": "OK"},
    {
        "option_name": "CONFIG_B",
        "type": "kconfig",
        "desired_val": "is not set",
        "check_result": 'FAIL: "y"',
    },
    {
        "option_name": "CONFIG_C",
        "type": "kconfig",
        "desired_val": "y",
        "check_result": "FAIL: is not found",
    },
    {"option_name": "kernel.x", "type": "sysctl", "desired_val": "1", "check_result": "FAIL: 0"},
]


def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Put a program in the way that answers as the checker does (its JSON, as of 0.6.17)."""
    program = tmp_path / "bin/kernel-hardening-checker"
    program.parent.mkdir()
    (tmp_path / "answer").write_text(answer)
    program.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && { echo kernel-hardening-checker 0.6.17.1; exit; }\n'
        f'grep -q ^CONFIG_B=y "$2" && cat {tmp_path}/answer\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


def test_deviations_with_and_without_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(tmp_path, monkeypatch, json.dumps(ANSWER))
    accepted = {"CONFIG_C": "not in this kernel", "CONFIG_A": "old"}
    found = check_hardening("CONFIG_B=y\n", accepted)
    assert (found.version, found.checks) == ("0.6.17.1", 3)
    assert [(d.option, d.reason) for d in found.deviations] == [
        ("CONFIG_B", None),
        ("CONFIG_C", "not in this kernel"),
    ]
    assert [d.option for d in found.refused] == ["CONFIG_B"]
    assert found.needless == ["CONFIG_A"]


@pytest.mark.parametrize("answer", ["", "nonsense", "{}", "[1]", '[{"type": "kconfig"}]'])
def test_other_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    answering(tmp_path, monkeypatch, answer)
    with pytest.raises(BuildError, match="something else than its JSON"):
        check_hardening("CONFIG_B=y\n", {})


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="kernel-hardening-checker is not installed"):
        check_hardening("", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[accept]]\noptions = ['A']", "a deviation needs its reason"),
        ("[[accept]]\nreason = 'r'", "options must be a list"),
        ("[[accept]]\nreason = 'r'\noptions = ['A', 'A']", "A is there twice"),
        ("[other]", "there is only one key"),
        ("[[accept", "hardening.toml: "),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hardening.toml"
    path.write_text(text)
    with pytest.raises(DefinitionError, match=message):
        read_accepted(path)


def test_ours_is_sound_and_none_is_none(tmp_path: Path) -> None:
    assert len(read_accepted(default_recipe().parent / "hardening.toml")) > 50
    assert read_accepted(tmp_path / "absent.toml") == {}
