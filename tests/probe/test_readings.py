"""Probes that only read: of this machine, with something in it that the test makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.probe.load import (
    PATIENCE,
    SPIN,
    Groups,
    events,
    limit,
    needs_probe,
    one_cpu,
    watch_until,
)

from tegu.cli import main
from tegu.probe import Settings, encode, find_tool, parse, watch
from tegu.probe.reading import cgroup_of, numbers
from tegu.probe.tools import clocks
from tegu.probe.tools.load import counts
from tegu.probe.tools.units import Units, kind_of_name
from tegu.probe.tools.usage import is_stray


def ask(name: str, settings: Settings | None = None) -> Any:
    needs_probe(name)
    found = list(watch(find_tool(name), settings or Settings(seconds=0.2), threading.Event()))
    recording = parse([encode(r) for r in found], name)
    for table in find_tool(name).tables(recording, 10):
        assert all(len(row) == len(table.columns) for row in table.rows)
    return recording


def hold_back(directory: Path) -> None:
    """Give a group a twentieth of a processor."""
    if (directory / "cpu.max").exists():
        (directory / "cpu.max").write_text("5000 100000")
    elif (directory / "cpu.cfs_quota_us").exists():
        (directory / "cpu.cfs_period_us").write_text("100000")
        (directory / "cpu.cfs_quota_us").write_text("5000")
    else:
        pytest.skip("no cpu controller here")


def test_a_group_that_its_limit_holds_back(groups: Groups) -> None:
    group = groups.make("held")
    hold_back(groups.directory(group))
    groups.python(group, SPIN, one_cpu())
    for _ in range(PATIENCE):
        recording = ask("throttle", Settings(seconds=1))
        row = next(r for r in recording.summary["groups"] if r["cgroup"] == group)
        if row["held_periods"]:
            break
    assert row["quota_cpus"] == 0.05 and 0 < row["held_periods"] <= row["periods"]
    assert row["held_ns"] > 0
    shown = find_tool("throttle").tables(recording, 100)[0]
    assert any(r[0] == group for r in shown.rows)


def test_what_grows_is_seen() -> None:
    code = (
        "import os, sys, threading\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "kept = bytearray(os.urandom(1 << 20) * 40), [os.dup(0) for _ in range(50)]\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('grown', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        stop = threading.Event()
        found = []
        for record in watch(find_tool("growth"), Settings(seconds=None, pid=child.pid), stop):
            found.append(record)
            if record["type"] == "header":
                child.stdin.write("go\n")
                child.stdin.flush()
                assert child.stdout.readline() == "grown\n"
                stop.set()
        child.kill()
    (row,) = parse([encode(r) for r in found], "growth").summary["grown"]
    assert row["pid"] == child.pid and not row["new"]
    assert row["more_bytes"] >= 30 << 20 and row["more_fds"] == 50 and row["more_threads"] == 1
    assert row["limit"] is None or row["limit"] >= 50


def test_ports_in_time_wait_are_counted_by_destination() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(5):
            client = socket.create_connection(server.getsockname())
            peer, _ = server.accept()
            client.close()  # who closes first waits
            assert peer.recv(1) == b""
            peer.close()
        wanted = f"127.0.0.1:{server.getsockname()[1]}"
        summary = ask("ports").summary
    row = next(d for d in summary["destinations"] if d["to"] == wanted)
    assert row["ports"] == row["time_wait"] == 5 and 0 <= row["percent"] < 1
    assert summary["states"]["LISTEN"] >= 1 and summary["states"]["TIME_WAIT"] >= 5


def test_our_own_mounts_are_counted() -> None:
    summary = ask("mounts").summary
    number = os.stat("/proc/self/ns/mnt").st_ino  # noqa: PTH116
    own = next(s for s in summary["namespaces"] if s["namespace"] == number)
    assert own["mounts"] > 0 and sum(own["kinds"].values()) == own["mounts"]
    assert sum(p["mounts"] for p in summary["below"]) >= own["mounts"]


@pytest.mark.parametrize("groups", ["memory"], indirect=True)
def test_groups_are_counted_below_their_parent(groups: Groups) -> None:
    for name in ("a", "b", "c"):
        groups.make(name)
    summary = ask("groups").summary
    row = next(p for p in summary["parents"] if p["cgroup"] == f"/{groups.base.name}")
    assert row["children"] == 3
    assert summary["version"] == 1 or row["empty"] == 3


def test_a_clock_that_jumps_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine's own clock is not for a test to set.
    offsets = iter([1000.0, 1000.000_1, 990.0, 990.0, 990.0])
    monkeypatch.setattr(clocks, "realtime_offset", lambda: next(offsets))
    tool = clocks.Clocks()
    first = tool.look(Settings())
    assert list(tool.between()) == []
    (event,) = tool.between()
    assert event["jump_seconds"] == pytest.approx(-10.0001)
    assert tool.lines(event)[0].startswith("the time of day went backwards by 10.000 s, to 20")
    assert list(tool.between()) == []
    moved = tool.compare(first, tool.look(Settings()), 1.0)["moved_seconds"]
    assert moved == pytest.approx(-10)


def test_a_clock_that_does_not() -> None:
    recording = ask("clocks")
    assert recording.summary["source"] and abs(recording.summary["moved_seconds"]) < 3600


def test_who_uses_the_processors(groups: Groups) -> None:
    group = groups.make("user")
    child = groups.python(group, SPIN, one_cpu())
    for _ in range(PATIENCE):
        recording = ask("usage", Settings(seconds=1))
        rows = {p["pid"]: p for p in recording.summary["processes"]}
        used = {g["cgroup"]: g["percent"] for g in recording.summary["groups"]}
        if child.pid in rows and used.get(group):
            break
    assert rows[child.pid]["cgroup"] == group and not rows[child.pid]["stray"]
    assert used[group] > 0
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as stray:
        try:
            own = is_stray(cgroup_of(stray.pid))
            for _ in range(PATIENCE):
                rows = {p["pid"]: p for p in ask("usage").summary["processes"]}
                if stray.pid in rows:
                    break
        finally:
            stray.kill()
    assert rows[stray.pid]["stray"] == own


def test_strays() -> None:
    assert is_stray("/") and is_stray("/system.slice") and is_stray("")
    assert not is_stray("/system.slice/ssh.service") and not is_stray("/kubepods/pod1")


def test_a_load_has_an_owner(groups: Groups) -> None:
    needs_probe("load")
    group = groups.make("busy")
    for _ in range(2 * (os.cpu_count() or 1) + 2):
        groups.python(group, SPIN, one_cpu())
    records = watch_until(
        "load",
        Settings(seconds=None),
        lambda r: any(w["cgroup"] == group for e in events(r) for w in e["whose"]),
    )
    event = next(e for e in events(records) if any(w["cgroup"] == group for w in e["whose"]))
    assert event["running"] > 2 * (os.cpu_count() or 1)
    recording = parse([encode(r) for r in records], "load")
    assert any(w["cgroup"] == group and w["state"] == "R" for w in recording.summary["whose"])
    assert "run or want to" in find_tool("load").lines(event)[0]


@pytest.mark.parametrize("groups", ["memory"], indirect=True)
def test_what_the_kernel_says_has_parts(groups: Groups) -> None:
    needs_probe("klog")
    group = groups.make("doomed")
    limit(group, groups, 24 << 20)
    child = None

    def enough(records: list[dict[str, Any]]) -> bool:
        return any(e["about"].get("pid") == str(child.pid) for e in events(records) if child)

    stop = threading.Event()
    timer = threading.Timer(PATIENCE, stop.set)
    timer.start()
    found: list[dict[str, Any]] = []
    for record in watch(find_tool("klog"), Settings(seconds=None), stop):
        found.append(record)
        if record["type"] == "header":
            child = groups.python(group, "b = b'x' * (256 << 20)")
        if enough(found):
            stop.set()
    timer.cancel()
    assert child is not None
    told = [e for e in events(found) if e["about"].get("pid") == str(child.pid)]
    assert told and told[0]["kind"] == "oom" and told[0]["about"]["comm"].startswith("python")
    assert parse([encode(r) for r in found], "klog").summary["events"]["oom"] >= 1


def test_units_are_counted_by_their_kind() -> None:
    assert kind_of_name("session-12.scope") == "session-*.scope"
    assert kind_of_name("run-u345.service") == "run-u*.service"
    assert kind_of_name("docker-0123456789abcdef0123.scope") == "docker-*.scope"
    tool = Units()
    first = {"ticks": 100, "rss_bytes": 1, "units": [("ssh.service", "active")]}
    leak = [(f"run-r{n}.scope", "active") for n in range(5)]
    now = [("ssh.service", "active"), *leak, ("a.mount", "failed")]
    summary = tool.compare(first, {"ticks": 150, "rss_bytes": 2, "units": now}, 1.0)
    assert summary["units"] == 7 and summary["cpu_percent"] > 0
    kinds = {k["kind"]: k for k in summary["kinds"]}
    assert kinds["run-r*.scope"]["more"] == kinds["run-r*.scope"]["units"] == 5
    assert kinds["a.mount"]["failed"] == 1 and kinds["ssh.service"]["more"] == 0


def test_units_of_this_machine() -> None:
    summary = ask("units").summary
    assert summary["units"] > 0 and summary["rss_bytes"] > 0


@given(st.text())
def test_any_stat_gives_two_numbers(text: str) -> None:
    assert all(n >= 0 for n in counts(text))


def test_a_recording_of_a_reading_is_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_probe("mounts")
    file = str(tmp_path / "m.jsonl")
    assert main(["probe", "mounts", "record", file]) == 0
    assert main(["probe", "report", file]) == 0
    assert "mounts in" in capsys.readouterr().out
    assert main(["probe", "mounts", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["header", "summary", "end"]
    assert main(["probe", "mounts", "--pid", "1"]) != 0
    assert "cannot be limited" in capsys.readouterr().err


@given(st.text())
def test_any_file_gives_the_numbers_that_are_in_it(text: str) -> None:
    class Fake:
        def read_text(self, errors: str = "") -> str:
            return text

    found = numbers(Fake())  # type: ignore[arg-type]
    assert all(isinstance(v, int) for v in found.values())


def test_a_process_has_its_cgroup(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("3:cpu,cpuacct:/a\n0::/b\n")
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "cgroup").write_text("0::/b:c\nnonsense\n")
    assert (cgroup_of(7, tmp_path), cgroup_of(8, tmp_path), cgroup_of(9, tmp_path)) == (
        "/a",
        "/b:c",
        "",
    )
