"""What a run of the fault bench keeps, and when it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.common import BenchError
from bench.faults import bench, state
from bench.faults.state import Progress, made_of

ABOUT = {"rule": "oom_loop", "culprit": "x", "heal": True}


def test_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "deep/faults.json"
    first = Progress(path)
    assert first.done("oom-loop", "digest") is None and first.note() == ""
    first.keep("oom-loop", "digest", {"found": "yes"})
    again = Progress(path)
    assert again.done("oom-loop", "digest") == {"found": "yes"}
    assert again.note().startswith("1 rows were made by earlier runs")
    assert again.done("oom-loop", "another") is None and again.done("other", "digest") is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"oom-loop": 3}'])
def test_a_damaged_state_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "faults.json"
    path.write_bytes(content)
    progress = Progress(path)
    assert progress.done("oom-loop", "digest") is None
    progress.keep("oom-loop", "digest", {})
    assert Progress(path).done("oom-loop", "digest") == {}


def test_what_a_row_is_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = made_of("fault", "oom-loop", ABOUT)
    assert before == made_of("fault", "oom-loop", ABOUT)
    assert before != made_of("fault", "oom-loop", {**ABOUT, "heal": False})
    assert before != made_of("fault", "fd-limit", {**ABOUT, "rule": "fd_limit"})
    import shutil

    shutil.copytree(state.HERE / "guest", tmp_path / "guest")
    monkeypatch.setattr(state, "HERE", tmp_path)
    assert before == made_of("fault", "oom-loop", ABOUT)
    twin = made_of("twin", "backup", {})
    with (tmp_path / "guest/faults/oom-loop.sh").open("a") as script:
        script.write("# changed\n")
    assert before != made_of("fault", "oom-loop", ABOUT) and twin == made_of("twin", "backup", {})


def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEGU_FAULTS", "oom-loop,nonsense")
    with pytest.raises(BenchError, match="no fault or twin nonsense"):
        bench.run(quick=False)
