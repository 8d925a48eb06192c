"""The verbs that need no hierarchy, the page of `top`, and traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.cli import main
from tegu.errors import QosError, UsageError
from tegu.qos import parse_policy
from tegu.qos.simulate import simulate
from tegu.qos.view import History, render, sparkline

POLICY = """
[latency]
match = ["unit:web"]
[slo]
p99 = "2ms"
[loop]
knobs = ["io"]
ceiling = { io = 4000 }
"""


def test_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").write_text(POLICY)
    lines = ['{"p99": 0.001, "samples": 900}', '{"p99": 0.004, "samples": 900}', "", "{}"]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    code = main(["qos", "simulate", str(tmp_path / "p.toml"), str(tmp_path / "t.jsonl"), "--json"])
    assert code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["state"], r["knobs"]["io"]) for r in rows] == [
        ("open", 1.0),
        ("cut", 0.5),
        ("safe", 0.1),
    ]


def test_traces_that_are_wrong(tmp_path: Path) -> None:
    policy, trace = parse_policy(POLICY, "p"), tmp_path / "t"
    with pytest.raises(QosError, match="cannot read"):
        list(simulate(policy, trace))
    for text, words in (("{}\nx", "t:2: not JSON"), ("[]", "t:1: not an object")):
        trace.write_text(text)
        with pytest.raises(QosError, match=words):
            list(simulate(policy, trace))
    with pytest.raises(UsageError, match="there is no"):
        list(simulate(parse_policy('[batch]\nmatch=["unit:a"]', "p"), trace))


@given(st.text(max_size=40))
def test_any_trace(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "t"
        trace.write_text(text.encode("utf-8", "replace").decode())
        try:
            list(simulate(parse_policy(POLICY, "p"), trace))
        except QosError as e:
            assert "\n" not in e.message


def test_what_is_told_when_nothing_can_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qos", "apply", str(tmp_path / "none.toml")]) == 3
    assert main(["qos", "run", "--class", "urgent", "--", "true"]) == 2
    assert "is none of latency, normal, batch" in capsys.readouterr().err


def test_the_page() -> None:
    history = History()
    for second in range(80):
        history.add(
            {
                "time": second,
                "state": "holding",
                "why": "slack 0.10",
                "slo": 0.002,
                "p99": None if second == 79 else 0.0018,
                "knobs": {"io": 0.5},
                "pressure": {"io": 12.5},
                "members": {"latency": ["/web"], "batch": []},
                "failed": ["/batch/io.max: permission denied"],
            }
        )
    page = render(history)
    assert "holding: slack 0.10" in page and "50%" in page and "2.000 ms" in page
    assert "batch           nothing matches" in page
    assert "not written: /batch/io.max: permission denied" in page
    assert len(history.states) == 60
    assert sparkline([0.0, 1.0, 5.0, None], 1.0) == "▁██ "
