"""Recordings: read back as written; what was cut off or damaged is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.cli import main
from tegu.errors import ProbeError
from tegu.probe import encode, find_tool, parse, read

HEADER = {"type": "header", "tegu_probe": 1, "tool": "runq"}
END = {"type": "end", "seconds": 1.5, "lost": 0}
WHO = {"comm": "a", "tid": 1, "pid": 1, "cgroup": "/a"}
EVENT = {
    "type": "event",
    "wait_ns": 2_000_000,
    "cpu": 0,
    "victim": WHO,
    "behind": {**WHO, "ran_ns": 1, "preempted": True, "stack": ["schedule"], "user_stack": []},
}
SUMMARY = {
    "type": "summary",
    "switches": 1,
    "histogram_us": [0] * 10 + [1],
    "pairs": [{"victim": "/a", "culprit": "/b", "waits": 1, "total_ns": 5, "max_ns": 5}],
    "tasks": [],
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def whole(*records: dict[str, Any]) -> bytes:
    return b"".join(encode(r) for r in records)


def lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=5), max_size=5))
def test_what_was_written_is_read(events: list[dict[str, Any]]) -> None:
    kept = [{**e, "type": "event"} for e in events]
    found = parse(lines(whole(HEADER, *kept, SUMMARY, END)), "x")
    assert found.events == kept
    assert found.header == HEADER
    assert (found.tool, found.lost, found.seconds) == ("runq", 0, 1.5)


WHOLE = whole(HEADER, EVENT, EVENT, SUMMARY, END)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=len(WHOLE) - 1))
def test_every_cut_is_noticed(length: int) -> None:
    with pytest.raises(ProbeError) as caught:
        parse(lines(WHOLE[:length]), "x")
    assert "cut off" in caught.value.message or "empty" in caught.value.message
    assert "\n" not in caught.value.message


@settings(deadline=None)
@given(st.binary(max_size=300) | st.builds(lambda v: json.dumps(v).encode() + b"\n", json_values))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProbeError):
        parse(lines(data), "x")


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=8), st.integers(min_value=0, max_value=len(WHOLE)))
def test_damage_never_escapes(junk: bytes, where: int) -> None:
    damaged = WHOLE[:where] + junk + WHOLE[where:]
    try:
        parse(lines(damaged), "x")
    except ProbeError as e:
        assert "\n" not in e.message


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{**HEADER, "tegu_probe": 99}, END], "format 99"),
        ([{**HEADER, "tegu_probe": True}, END], "no version"),
        ([EVENT, END], "does not start with a header"),
        ([HEADER, {"type": "dream"}, END], "unknown record 'dream'"),
        ([HEADER, END, EVENT], "more after the recording's end"),
        ([HEADER, {"type": "end", "lost": -1, "seconds": 0}], "nothing of lost"),
    ],
)
def test_wrong_recordings_are_told(records: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        parse(lines(whole(*records)), "x")


def test_a_report_needs_neither_kernel_nor_privilege(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(WHOLE)
    assert main(["probe", "report", str(file)]) == 0
    out = capsys.readouterr().out
    assert "a[1] in /a waited 2.00 ms for CPU 0 behind a[1] in /a" in out
    assert "/a\t/b\t1" in out
    assert main(["probe", "runq", "report", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["switches"] == 1


@pytest.mark.parametrize(
    "summary", [{"type": "summary"}, {**SUMMARY, "pairs": 5}, {**SUMMARY, "histogram_us": ["a"]}]
)
def test_a_damaged_summary_is_one_line(
    summary: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(whole(HEADER, summary, END))
    assert main(["probe", "report", str(file)]) == 21
    err = capsys.readouterr().err
    assert "damaged" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rung"], "No such command 'rung'"),
        (["runq", "--threshold", "fast"], "'fast' is no time"),
        (["runq", "--threshold", "0ms"], "more than nothing"),
        (["runq", "--threshold", "5"], "write it as 500us"),
        (["census", "--threshold", "5ms"], "has no threshold"),
        (["runq", "--seconds", "soon"], "no number of seconds"),
        (["runq", "--flame", "x.svg"], "draws no flame graph"),
        (["drops", "--pid", "1"], "cannot be limited"),
        (["runq", "keep"], "neither record nor report"),
        (["runq", "record"], "a file is missing"),
        (["runq", "--nonsense"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_recording_of_another_probe_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(WHOLE)
    assert main(["probe", "blkio", "report", str(file)]) == 2
    assert "a recording of runq, not of blkio" in capsys.readouterr().err
    file.write_bytes(WHOLE[:-20])
    assert main(["probe", "report", str(file)]) == 21
    assert "is cut off" in capsys.readouterr().err
    assert main(["probe", "report", str(tmp_path / "none")]) == 21


def test_reading_from_a_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot read"):
        read(tmp_path / "none")


def test_all_probes_explain_themselves() -> None:
    from tegu.probe import TOOLS

    for name in TOOLS:
        tool = find_tool(name)
        assert tool.name == name
        words = tool.description()
        assert tool.facility in words and tool.overhead in words
        assert tool.question.endswith("?")
