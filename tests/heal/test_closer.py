"""When the agent asks a probe, and what it makes of the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.heal.build import look

from tegu.cli import main
from tegu.errors import TeguError
from tegu.heal import Finding, Look, Subject
from tegu.heal import closer as closers
from tegu.heal.agent import Agent
from tegu.heal.closer import Closer
from tegu.heal.snapshot import Pressure, Snapshot
from tegu.probe import availability, find_tool
from tegu.probe.once import main as once

RUNQ: dict[str, Any] = {
    "summary": {
        "pairs": [
            {"victim": "/web", "culprit": "/batch", "waits": 9, "total_ns": 2_000_000_000},
            {"victim": "/web", "culprit": "/web", "waits": 9, "total_ns": 2_500_000_000},
            {"victim": "/db", "culprit": "/batch", "waits": 9, "total_ns": 500_000_000},
            {"victim": "/x", "culprit": "/y", "waits": 9, "total_ns": 1_000_000},
            {"victim": "/web", "culprit": "/user.slice/session.scope", "total_ns": 9_000_000_000},
        ],
        "tasks": [
            {"comm": "nginx", "pid": 7, "cgroup": "/web", "total_ns": 900_000_000},
            {"comm": "make", "pid": 8, "cgroup": "/batch", "total_ns": 100_000_000},
        ],
    },
    "end": {"seconds": 3.0, "lost": 0},
}
RECLAIM = {
    "summary": {
        "stalls": [
            {"victim": "/a/web", "culprit": "/a", "kind": "memcg", "total_ns": 1_000_000_000},
            {"victim": "/b", "culprit": None, "kind": "direct", "total_ns": 500_000_000},
        ],
        "grown": {"cgroup": "/hog", "bytes": 200 << 20},
    },
    "end": {"seconds": 3.0, "lost": 0},
}
BLKIO = {
    "summary": {
        "sums": [
            {"cgroup": "/db", "disk": "vda", "count": 10, "total_ns": 1_000_000_000},
            {"cgroup": "/backup", "disk": "vda", "count": 90, "total_ns": 8_000_000_000},
        ]
    },
    "end": {"seconds": 3.0, "lost": 0},
}
ANSWERS = {"runq": RUNQ, "reclaim": RECLAIM, "blkio": BLKIO}


class Asked:
    """Stands for the probes: notes what was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, name: str, seconds: float) -> dict[str, Any]:
        self.asked.append(name)
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


def pressed(**shares: float) -> Look:
    """A look of ten seconds in which some tasks waited for such shares of the time."""
    last = {name: Pressure(int(share * 10e6), 0) for name, share in shares.items()}
    return look(
        first=replace(Snapshot(), pressure=dict.fromkeys(last, Pressure())),
        last=replace(Snapshot(), pressure=last),
    )


def texts(finding: Finding) -> str:
    return "\n".join(map(str, finding.evidence))


def test_calm_machines_are_left_alone() -> None:
    asked = Asked(ANSWERS)
    assert Closer(ask=asked)(pressed(cpu=0.3, memory=0.05, io=0.3), []) == []
    assert Closer(ask=asked)(look(), []) == [] and asked.asked == []


def test_processors() -> None:
    (one,) = Closer(ask=Asked(ANSWERS))(pressed(cpu=0.9), [])
    assert (one.rule, one.severity) == ("cpu_pressure", "notice")
    assert one.culprit is not None and one.culprit.name == "/batch"
    assert [v.name for v in one.victims] == ["/web", "/db"]
    assert "/web waits behind /batch 2 s in 3.0 s" in texts(one)
    assert "nginx [7] of /web waits 0.9 s" in texts(one) and "make" not in texts(one)
    assert "session.scope" not in texts(one)  # this very program is not to be blamed


def test_a_machine_with_one_group() -> None:
    busy = pressed(cpu=0.9)
    busy.__dict__["own_group"] = "/"
    pairs = [{"victim": "/", "culprit": "/", "waits": 9, "total_ns": 2_000_000_000}]
    summary = {**RUNQ["summary"], "pairs": pairs}
    (one,) = Closer(ask=Asked({"runq": {**RUNQ, "summary": summary}}))(busy, [])
    assert one.culprit is None and "/ waits behind / 2 s" in texts(one)


def test_memory() -> None:
    (one,) = Closer(ask=Asked(ANSWERS))(pressed(memory=0.5), [])
    assert one.culprit is not None and one.culprit.name == "/a"
    assert "/a/web stalls at the limit of /a 1 s" in texts(one) and "/hog grew by" in texts(one)


def test_disks() -> None:
    (one,) = Closer(ask=Asked(ANSWERS))(pressed(io=0.9), [])
    assert one.culprit is not None and one.culprit.name == "/backup"
    assert "/backup on vda, 90 requests of 88.89 ms" in texts(one)


def test_a_rule_that_knows_gets_the_evidence() -> None:
    known = Finding("cpu_neighbour", "x", "warning", 0.8, Subject.group("/batch"))
    other = Finding("disk_full", "y", "warning", 0.8, Subject("filesystem", "/"))
    found = Closer(ask=Asked(ANSWERS))(pressed(cpu=0.9), [known, other])
    assert [f.rule for f in found] == ["cpu_neighbour", "disk_full"]
    assert "waits behind /batch" in texts(found[0]) and found[1] is other


def test_it_asks_once_while_the_pressure_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(ANSWERS)
    closer = Closer(ask=asked)
    for _ in range(3):
        assert len(closer(pressed(cpu=0.9), [])) == 1
    assert len(closer(pressed(cpu=0.25), [])) == 1  # still more than half of the threshold
    assert asked.asked == ["runq"]
    assert closer(pressed(cpu=0.1), []) == []
    closer(pressed(cpu=0.9), [])
    assert asked.asked == ["runq", "runq"]
    monkeypatch.setattr(closers, "_FRESH", -1.0)
    closer(pressed(cpu=0.9), [])
    assert len(asked.asked) == 3


def test_without_bpf() -> None:
    answers = {name: {"unsupported": "this kernel has no BTF"} for name in ANSWERS}
    known = Finding("cpu_neighbour", "x", "warning", 0.8, Subject.group("/batch"))
    (one,) = Closer(ask=Asked(answers))(pressed(cpu=0.9), [known])
    assert "probe runq unsupported: this kernel has no BTF" in texts(one)
    (two,) = Closer(ask=Asked(answers))(pressed(io=0.9), [])
    assert two.culprit is None and "unsupported: this kernel has no BTF" in texts(two)


@pytest.mark.parametrize(
    "answer",
    [TeguError("it took too long"), ValueError("no JSON"), {}, {"summary": 3, "end": {}},
     {"summary": {"pairs": [{"victim": 1}]}, "end": {"seconds": "x"}}],
)  # fmt: skip
def test_an_answer_that_is_none(answer: Any) -> None:
    (one,) = Closer(ask=Asked({"runq": answer}))(pressed(cpu=0.9), [])
    assert "probe runq failed: " in texts(one) and one.culprit is None


def test_the_agent_goes_on(tmp_path: Path) -> None:
    said: list[str] = []

    def broken(name: str, seconds: float) -> dict[str, Any]:
        raise RuntimeError("a fault of ours")

    closer = Closer(ask=broken)
    with pytest.raises(RuntimeError):
        closer(pressed(cpu=0.9), [])
    agent = Agent(
        database=tmp_path / "history",
        journal=tmp_path / "journal",
        state=tmp_path / "state",
        closer=closer,
        tell=said.append,
    )
    agent._rules = []
    busy = pressed(cpu=0.9)
    diagnosis = agent._closely(busy, agent.step())
    assert diagnosis.findings == () and "no closer look: RuntimeError: a fault of ours" in said
    agent.close()


def test_one_probe_as_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert once(["runq"]) == 2 and once(["runq", "x"]) == 2 and once(["nonsense", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_one_probe_without_privilege() -> None:
    code = "import os, sys; os.setgid(65534); os.setuid(65534)\n" + (
        "from tegu.probe.once import main; sys.exit(main(['runq', '1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "unsupported" in json.loads(done.stdout)


@pytest.mark.parametrize("name", ["runq", "reclaim", "blkio"])
def test_real_probes(name: str) -> None:
    reason = availability(find_tool(name))
    if reason:
        pytest.skip(f"probe {name}: {reason}")
    facts = closers.ask_probe(name, 0.5)
    assert facts["end"]["seconds"] > 0
    resource = next(p.resource for p in closers._ALL if p.probe == name)
    answer = closers._READERS[resource](facts, "/none")
    assert all("failed" not in str(e) for e in answer.evidence)


def test_the_doctor_looks_closer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = pressed(cpu=0.9)
    monkeypatch.setattr("tegu.heal.doctor.look", lambda *_: busy)
    monkeypatch.setattr(closers, "ask_probe", Asked(ANSWERS))
    code = main(["doctor", "--closer", "--rule", "unit_leak", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0 and [f["rule"] for f in said["findings"]] == ["cpu_pressure"]
    assert "cpu_pressure" in said["rules"]
