"""The resident doctor and its history."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tegu.cli import main
from tegu.errors import TeguError
from tegu.heal import Finding, Look, Rule, Subject
from tegu.heal import history as histories
from tegu.heal.agent import Agent
from tegu.heal.history import History


def finding(name: str = "x") -> Finding:
    return Finding("rule", f"{name} is ill", "warning", 0.5, Subject("device", name))


def calm(_: Look, findings: Iterable[Finding]) -> list[Finding]:
    """No closer look: whether there is pressure is this machine's matter."""
    return list(findings)


def test_what_comes_and_goes(tmp_path: Path) -> None:
    base = History(tmp_path / "a/history")
    assert [c.what for c in base.note(1.0, [finding()])] == ["began"]
    assert base.note(2.0, [finding()]) == []
    changes = base.note(3.0, [finding("y")])
    assert {(c.key, c.what) for c in changes} == {("rule:x", "ended"), ("rule:y", "began")}
    newest, oldest = base.findings()
    assert (oldest["began"], oldest["ended"], newest["ended"]) == (1.0, 3.0, None)
    assert base.scores(0) == [(1.0, 92), (2.0, 92), (3.0, 92)]
    base.close()


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "_MOST_FINDINGS", 5)
    monkeypatch.setattr(histories, "_MOST_SCORES", 7)
    base = History(tmp_path / "history")
    for n in range(30):
        base.note(float(n), [finding(str(n))])
    assert len(base.findings(1000)) <= 6 and len(base.scores(0)) <= 7
    base.close()


def test_a_damaged_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(TeguError, match="not a database"):
        History(path)
    assert main(["agent", "history", "--database", str(tmp_path / "none")]) == 1
    assert "there is no history" in capsys.readouterr().err


def test_it_stays_up(tmp_path: Path) -> None:
    said: list[str] = []
    agent = Agent(database=tmp_path / "history", journal=tmp_path / "journal",
                  state=tmp_path / "state", closer=calm, tell=said.append)  # fmt: skip

    def raises(_: object) -> list[Finding]:
        raise RuntimeError("oh")

    agent._rules = [
        Rule("bad", "?", (), "", raises),
        Rule("good", "?", (), "", lambda _: [finding()]),
    ]
    for _ in range(3):
        assert len(agent.step().findings) == 1
    assert said == ["the rule bad failed: RuntimeError: oh", "began: warning: x is ill"]
    agent.close()


def test_a_full_disk_under_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    agent = Agent(database=tmp_path / "history", journal=tmp_path / "journal",
                  state=tmp_path / "state", closer=calm, tell=said.append)  # fmt: skip
    agent._rules = []

    def full(self: History) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(History, "_bound", full)
        agent.step()
        agent.step()
    assert len(said) == 1 and "database or disk is full" in said[0]
    agent.step()  # and there is room again
    agent.close()
    base = History(tmp_path / "history")
    assert len(base.scores(0)) == 1
    base.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to see all")
def test_a_real_one(tmp_path: Path) -> None:
    path = tmp_path / "history"
    argv = [sys.executable, "-m", "tegu", "agent", "run", "--every", "2", "--database", str(path)]
    argv += ["--state", str(tmp_path / "state")]
    agent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert agent.stdout is not None
        assert "looking every 2 s" in agent.stdout.readline()
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if path.exists() and len(_scores(path)) >= 2:
                break
            time.sleep(0.3)
        assert len(_scores(path)) >= 2
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
    finally:
        agent.kill()
        agent.wait()
    assert main(["agent", "history", "--database", str(path), "--json"]) == 0


def _scores(path: Path) -> list[tuple[float, int]]:
    try:
        base = History(path, create=False)
    except TeguError:
        return []
    try:
        return base.scores(0)
    finally:
        base.close()


def test_json_of_a_finding_survives(tmp_path: Path) -> None:
    base = History(tmp_path / "history")
    base.note(1.0, [finding()])
    (one,) = base.findings()
    assert one["finding"] == json.loads(json.dumps(finding().to_json()))
    base.close()
