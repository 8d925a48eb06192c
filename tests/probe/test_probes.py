"""Each probe on this very kernel, with something real for it to see."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.probe.load import SPIN, Groups, events, limit, needs_probe, one_cpu, watch_until

from tegu.cli import main
from tegu.errors import UnsupportedError, UsageError
from tegu.linux.libbpf import KernelTypes, load_library
from tegu.probe import Settings, encode, find_tool, parse, watch
from tegu.probe.tool import Need


def run_probe(name: str, settings: Settings) -> Any:
    """Run a probe to its end and return its recording."""
    records = list(watch(find_tool(name), settings, threading.Event()))
    return parse([encode(r) for r in records], name)


def test_the_list_says_what_works_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernel"] == os.uname().release
    for probe in found["probes"]:
        assert probe["available"] != bool(probe["reason"])


def test_census_agrees_with_proc(groups: Groups) -> None:
    needs_probe("census")
    group = groups.make("counted")
    code = (
        "import threading, sys\n"
        "for _ in range(5): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = groups.spawn(
        group, sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    recording = run_probe("census", Settings(cgroup=group))
    process = next(p for p in recording.summary["processes"] if p["pid"] == child.pid)
    assert process["threads"] == len(list(Path(f"/proc/{child.pid}/task").iterdir())) == 6
    assert process["cgroup"] == group and process["parent"] == os.getpid()
    assert [g["cgroup"] for g in recording.summary["groups"]] == [group]


def test_census_finds_the_dead_and_their_careless_parent() -> None:
    needs_probe("census")
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not waited for
    try:
        recording = run_probe("census", Settings())
    finally:
        child.wait()
    dead = next(p for p in recording.summary["processes"] if p["pid"] == child.pid)
    assert dead["state"] == "Z"
    own = next(p for p in recording.summary["processes"] if p["pid"] == os.getpid())
    assert own["dead_children"] >= 1


def test_sleeps_are_shown_with_what_holds_them(groups: Groups) -> None:
    needs_probe("offcpu")
    group = groups.make("sleeper")
    child = groups.python(group, "import time\nwhile True: time.sleep(0.05)")
    records = watch_until(
        "offcpu",
        Settings(seconds=None, cgroup=group, threshold_ns=20_000_000),
        lambda r: any(e["task"]["comm"].startswith("python") for e in events(r)),
    )
    event = next(e for e in events(records) if e["task"]["pid"] == child.pid)
    assert event["slept_ns"] >= 20_000_000 and event["state"] == "S"
    assert any("nanosleep" in frame for frame in event["stack"])
    summary = parse([encode(r) for r in records], "x").summary
    assert any("nanosleep" in f for s in summary["sleeps"] for f in s["stack"])


def test_a_wait_that_has_not_ended_is_listed(groups: Groups) -> None:
    needs_probe("dwait")
    group = groups.make("vfork")
    if os.uname().machine != "x86_64":
        pytest.skip("vfork(2) is a system call of its own on x86-64 only")
    # vfork(2), number 58: the parent waits in state D until the child starts a program or ends.
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "print('ready', flush=True)\n"
        "if libc.syscall(ctypes.c_long(58)) == 0:\n"
        "    libc.sleep(1000); libc._exit(0)\n"
    )
    child = groups.spawn(group, sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    state = ""
    while state != "D":
        time.sleep(0.01)
        state = Path(f"/proc/{child.pid}/stat").read_text().rsplit(") ", 1)[1][0]
    try:
        recording = run_probe("dwait", Settings(seconds=0.2, cgroup=group))
    finally:
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    still = recording.summary["still"]
    assert [s["task"]["pid"] for s in still] == [child.pid]
    assert still[0]["state"] == "D" and still[0]["slept_ns"] == 0
    assert any("vfork" in frame or "wait_for" in frame for frame in still[0]["stack"])


def test_the_profile_finds_who_spins(groups: Groups, tmp_path: Path) -> None:
    needs_probe("profile")
    group = groups.make("spinner")
    child = groups.python(group, SPIN, one_cpu())
    total = 0
    for _ in range(30):
        recording = run_probe("profile", Settings(seconds=1, cgroup=group))
        total = sum(s["count"] for s in recording.summary["samples"])
        if total:
            break
    assert total > 0
    assert {s["pid"] for s in recording.summary["samples"]} == {child.pid}
    assert {s["cgroup"] for s in recording.summary["samples"]} == {group}
    stacks = find_tool("profile").stacks_of(recording)
    assert sum(weight for _, weight in stacks) == total
    assert all(stack[0].startswith("python") for stack, _ in stacks)


def test_block_requests_are_charged_to_who_made_them(tmp_path: Path) -> None:
    needs_probe("blkio")
    file = tmp_path / "data"
    with file.open("wb") as f:
        f.write(b"x" * (1 << 20))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            fd = os.open(file, os.O_RDWR)
            os.pwrite(fd, b"y" * 4096, 0)
            os.fsync(fd)
            os.close(fd)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        records = watch_until(
            "blkio", Settings(seconds=None, pid=os.getpid(), threshold_ns=1), lambda r: True
        )
    finally:
        stop.set()
        worker.join()
    if not events(records):
        pytest.skip("the temporary directory is on no block device")
    event = events(records)[0]
    assert event["task"]["pid"] == os.getpid()
    assert event["disk"] and event["queue_ns"] + event["device_ns"] > 0 and not event["failed"]
    rows = parse([encode(r) for r in records], "x").summary["sums"]
    assert {r["pid"] for r in rows} == {os.getpid()}
    assert {r["operation"] for r in rows} <= {"read", "write", "flush"}


def test_a_dropped_packet_has_its_reason(groups: Groups) -> None:
    needs_probe("drops")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = threading.Event()
    records: list[dict[str, Any]] = []
    for record in watch(find_tool("drops"), Settings(seconds=None), stop):
        records.append(record)
        if record["type"] == "header":
            for _ in range(7):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"nobody is there", ("127.0.0.1", port))
            stop.set()
    drops = parse([encode(r) for r in records], "x").summary["drops"]
    found = [d for d in drops if d["to"] == f"127.0.0.1:{port}"]
    assert found and found[0]["reason"] == "NO_SOCKET"
    assert found[0]["transport"] == "UDP" and found[0]["protocol"] == "IPv4"
    assert sum(d["count"] for d in found) >= 7


@pytest.mark.parametrize("groups", ["memory"], indirect=True)
def test_failures_are_shown_with_their_parent(groups: Groups) -> None:
    needs_probe("exits")
    group = groups.make("job")
    stop = threading.Event()
    records: list[dict[str, Any]] = []
    child = None
    for record in watch(find_tool("exits"), Settings(seconds=None, cgroup=group), stop):
        records.append(record)
        if record["type"] == "header":
            child = groups.spawn(group, "/bin/sh", "-c", "/bin/true; kill -SEGV $$")
            child.wait()
            stop.set()
    assert child is not None
    found = events(records)
    end = next(e for e in found if e["kind"] == "exit" and e["task"]["pid"] == child.pid)
    assert end["ended"].startswith("killed by SIGSEGV")
    assert end["task"]["cgroup"] == group and end["parent"]["pid"] == os.getpid()
    program = next(e for e in found if e["kind"] == "exec" and e["file"] == "/bin/true")
    assert program["parent"]["pid"] == child.pid


HUNGRY = (
    "import mmap, os, sys\n"
    "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
    "os.ftruncate(fd, 64 << 20)\n"
    "while True:\n"
    "    for i in range(64): os.pread(fd, 1 << 20, i << 20)\n"
)


@pytest.mark.parametrize("groups", ["memory"], indirect=True)
def test_the_group_at_its_limit_is_the_culprit(groups: Groups, tmp_path: Path) -> None:
    needs_probe("reclaim")
    outer = groups.make("outer")
    inner = groups.make("outer/inner")
    limit(outer, groups, 24 << 20)
    child = groups.python(inner, HUNGRY, str(tmp_path / "data"))
    records = watch_until(
        "reclaim",
        Settings(seconds=None, threshold_ns=1),
        lambda r: any(e["victim"]["pid"] == child.pid and e["culprit"] for e in events(r)),
    )
    event = next(e for e in events(records) if e["victim"]["pid"] == child.pid and e["culprit"])
    assert event["kind"] == "limit"
    assert event["victim"]["cgroup"] == inner
    assert event["culprit"] == outer
    assert any("charge" in frame for frame in event["stack"])


@pytest.mark.parametrize("groups", ["memory"], indirect=True)
def test_a_kill_for_lack_of_memory_names_the_limit(groups: Groups) -> None:
    needs_probe("exits")
    group = groups.make("greedy")
    limit(group, groups, 24 << 20)
    stop = threading.Event()
    records: list[dict[str, Any]] = []
    child = None
    for record in watch(find_tool("exits"), Settings(seconds=None), stop):
        records.append(record)
        if record["type"] == "header":
            child = groups.python(group, "b = b'x' * (256 << 20)")
            child.wait()
            stop.set()
    assert child is not None and child.returncode == -signal.SIGKILL
    kill = next(e for e in events(records) if e["kind"] == "oom")
    assert kill["task"]["tid"] == child.pid
    assert kill["limit"] == group


# --- What is missing is said ----------------------------------------------------------------------


def test_a_kernel_that_lacks_something_is_told_what() -> None:
    needs_probe("runq")
    with KernelTypes() as types:
        assert not Need("tracepoint", "sched_switch").missing(types)
        for need, words in (
            (Need("tracepoint", "no_such"), "no tracepoint no_such"),
            (Need("iterator", "no_such"), "no iterator no_such"),
            (Need("member", "rq.no_such"), "no member rq.no_such"),
            (Need("enum", "no_such"), "no enum no_such"),
        ):
            assert words in need.missing(types)
        assert types.enum("skb_drop_reason")[0]
        assert not types.enum("no_such")


def test_without_libbpf_there_is_one_clear_line() -> None:
    with pytest.raises(UnsupportedError, match=r"libnothing\.so\.9 cannot be loaded"):
        load_library("libnothing.so.9")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a privilege to give up")
def test_without_privilege_there_is_one_clear_line() -> None:
    needs_probe("runq")
    done = subprocess.run(
        [sys.executable, "-m", "tegu", "probe", "runq", "--seconds", "1"],
        user=65534,
        group=65534,
        capture_output=True,
        text=True,
    )
    if "ModuleNotFoundError" in done.stderr or "ermission" in done.stderr.split("\n")[0]:
        pytest.skip("this source tree may not be read by others")
    assert done.returncode == 12
    assert done.stderr.startswith("tegu: unsupported: no privilege")
    assert "Traceback" not in done.stderr


def test_an_unknown_group_is_refused() -> None:
    needs_probe("runq")
    with pytest.raises(UsageError, match="no such cgroup"):
        list(watch(find_tool("runq"), Settings(cgroup="/no/such"), threading.Event()))


def test_ending_early_keeps_the_recording_whole(tmp_path: Path) -> None:
    needs_probe("census")
    file = tmp_path / "r.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "tegu", "probe", "runq", "record", str(file), "--seconds", "0"],
        stdout=subprocess.PIPE,
    ) as child:
        # It is there, and attached, when its temporary file is.
        while not list(tmp_path.glob(".r.jsonl.*")):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        child.wait()
    if file.exists():
        assert parse(file.read_bytes().splitlines(keepends=True), "r").tool == "runq"
    assert not list(tmp_path.glob(".r.jsonl.*"))
