"""The measuring helper must count what it says it counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench.common import (
    Bar,
    BenchError,
    BenchResult,
    Usage,
    alternate,
    disk_used,
    machine,
    measure,
    median,
    ratio,
)

BURN = "import time\nt = time.process_time()\nwhile time.process_time() - t < 0.4: pass\n"


def test_cpu_of_children_and_of_orphans_is_counted(tmp_path: Path) -> None:
    # The orphan is not waited for by the program that starts it: only a subreaper sees its time.
    (tmp_path / "burn.py").write_text(BURN)
    used = measure(
        ["sh", "-c", f"{sys.executable} burn.py & {sys.executable} burn.py"], cwd=tmp_path
    )
    assert used.cpu >= 0.8


def test_memory_of_the_largest_process_is_seen() -> None:
    hold = "import time; x = bytearray(200 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(1)"
    used = measure([sys.executable, "-c", hold])
    assert used.peak_mib > 200
    assert used.sum_mib > 200


def test_failure_is_told_with_the_last_lines(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="exited with 3: no such thing"):
        measure(["sh", "-c", "echo no such thing; exit 3"], log=tmp_path / "log")
    with pytest.raises(BenchError, match="cannot run /does/not/exist"):
        measure(["/does/not/exist"])


def test_a_program_past_its_time_is_ended_with_all_it_started(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="did not end within"):
        measure(["sh", "-c", "sleep 600 & echo $! >pid; wait"], timeout=1, cwd=tmp_path)
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_alternate_reverses_every_other_turn() -> None:
    order: list[str] = []

    def case(name: str) -> Usage:
        order.append(name)
        return Usage(1, 1, 1, 1)

    alternate({"a": lambda: case("a"), "b": lambda: case("b")}, 2)
    assert order == ["a", "b", "b", "a"]


def test_ratio_is_the_median_of_paired_ratios() -> None:
    ours = [Usage(1, c, 0, 0) for c in (1, 10, 2)]
    theirs = [Usage(1, c, 0, 0) for c in (4, 50, 4)]
    assert ratio(ours, theirs, "cpu") == 4
    assert median(ours).cpu == 2


def test_disk_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (4 << 20))
    before = disk_used(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert 4 <= before < 5
    assert disk_used(tmp_path) == before


def test_result_as_json_and_text() -> None:
    bars = [Bar.at_least("fast", 3.0, 4.0), Bar.at_most("small", 0.5, 0.7)]
    result = BenchResult("x", machine(), [{"case": "full", "cpu s": 1.234}], bars)
    assert not result.holds
    body = json.loads(json.dumps(result.to_json()))
    assert set(body) == {"bench", "machine", "rows", "bars"}
    assert body["bars"][0] == {"name": "fast", "value": 3.0, "limit": 4.0, "holds": False}
    text = result.to_text()
    assert "MISSED" in text
    assert "at most 0.70" in text
