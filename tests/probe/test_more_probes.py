"""Probes of system calls, files, connections, names, signals, interrupts and locks, on this kernel.

Each has something real to see that the test makes itself, and sees until it has.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.probe.load import PATIENCE, events, needs_probe, watch_until

from tegu.linux.seccomp import syscall_name, syscall_number
from tegu.probe import Settings, encode, find_tool, parse, watch
from tegu.probe.network import address
from tegu.probe.paths import device_name, path_of
from tegu.probe.tools.dns import question
from tegu.probe.tools.locks import kind_of_lock
from tegu.probe.tools.signals import signal_name

Records = list[dict[str, Any]]


def recorded(records: Records) -> Any:
    return parse([encode(r) for r in records], "x")


def shown(name: str, records: Records) -> str:
    """Everything a reader would see, which must not fail on what the kernel said."""
    tool, recording = find_tool(name), recorded(records)
    words = [line for event in recording.events for line in tool.lines(event)]
    for table in tool.tables(recording, 10):
        assert all(len(row) == len(table.columns) for row in table.rows)
        words += [table.title, *(" ".join(map(str, row)) for row in table.rows)]
    return "\n".join(words)


@contextmanager
def child(code: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that waits for a line before it does anything."""
    started = f"import os, sys, threading, time\nsys.stdin.readline()\n{code}"
    with subprocess.Popen(
        [sys.executable, "-c", started, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def watch_while(name: str, settings: Settings, work: Callable[[], object]) -> Records:
    """Run a probe, do `work` once it is attached, and stop it."""
    stop = threading.Event()
    records: Records = []
    for record in watch(find_tool(name), settings, stop):
        records.append(record)
        if record["type"] == "header":
            work()
            stop.set()
    return records


def test_a_call_that_keeps_the_processor_is_shown() -> None:
    needs_probe("syscalls")
    code = "f = os.open('/dev/zero', 0)\nb = bytearray(64 << 20)\nwhile True: os.readv(f, [b])"
    with child(code) as process:
        go(process)
        records = watch_until(
            "syscalls",
            Settings(seconds=None, pid=process.pid, threshold_ns=1_000_000),
            lambda r: any(e["call"] == "readv" for e in events(r)),
        )
    event = next(e for e in events(records) if e["call"] == "readv")
    assert event["task"]["pid"] == process.pid
    assert 1_000_000 <= event["busy_ns"] <= event["took_ns"]
    calls = recorded(records).summary["calls"]
    row = next(c for c in calls if c["call"] == "readv")
    assert row["count"] >= 1 and row["busy_ns"] <= row["total_ns"] and row["errors"] == 0
    assert "readv" in shown("syscalls", records)


def test_a_call_that_sleeps_keeps_no_processor() -> None:
    needs_probe("syscalls")
    with child("while True: time.sleep(0.02)") as process:
        go(process)
        found: Records = []
        for _ in range(PATIENCE):
            records = list(
                watch(
                    find_tool("syscalls"), Settings(seconds=1, pid=process.pid), threading.Event()
                )
            )
            found = [c for c in recorded(records).summary["calls"] if "nanosleep" in c["call"]]
            if found:
                break
    assert found[0]["total_ns"] >= 10_000_000 * found[0]["count"]
    assert found[0]["busy_ns"] < found[0]["total_ns"]


def test_a_sync_is_shown_with_its_file(tmp_path: Path) -> None:
    needs_probe("fsync")
    path = tmp_path / "synced"
    code = (
        "f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "while True: os.pwrite(f, b'x' * 4096, 0); os.fdatasync(f)"
    )
    with child(code, str(path)) as process:
        go(process)
        records = watch_until(
            "fsync",
            Settings(seconds=None, pid=process.pid, threshold_ns=1),
            lambda r: any(e["file"] for e in events(r)),
        )
    event = next(e for e in events(records) if e["file"])
    assert event["call"] == "fdatasync" and Path(event["file"]).name == "synced"
    assert {c["call"] for c in recorded(records).summary["calls"]} == {"fdatasync"}
    assert "synced" in shown("fsync", records)


def test_who_writes_which_file_is_counted(tmp_path: Path) -> None:
    needs_probe("files")
    size, path = 8 << 20, tmp_path / "written"
    code = (
        "f = open(sys.argv[1], 'wb'); f.write(b'x' * int(sys.argv[2])); f.flush()\n"
        "print('done', flush=True); time.sleep(1000)"
    )
    with child(code, str(path), str(size)) as process:

        def work() -> None:
            go(process)
            assert process.stdout is not None and process.stdout.readline() == "done\n"

        records = watch_while("files", Settings(seconds=None, pid=process.pid), work)
    files = recorded(records).summary["files"]
    row = next(f for f in files if f["file"].endswith("/written"))
    assert row["pid"] == process.pid and row["inode"] == path.stat().st_ino
    assert row["dirtied_bytes"] >= size and row["cached_bytes"] >= size
    assert "written" in shown("files", records)


def test_a_refused_connection_says_why_and_a_made_one_what_it_carried() -> None:
    needs_probe("connections")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        closed = socket.create_server(("127.0.0.1", 0))
        refused = closed.getsockname()[1]
        closed.close()

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                while peer.recv(1 << 16):
                    pass

        def work() -> None:
            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", refused))
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"x" * (1 << 20))
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            thread.join()

        records = watch_while("connections", Settings(seconds=None, threshold_ns=1), work)
    failed = next(e for e in events(records) if e["to"] == f"127.0.0.1:{refused}")
    assert failed["failed"] and failed["error"] == "ECONNREFUSED"
    assert failed["task"]["pid"] == os.getpid()
    made = next(e for e in events(records) if e["to"] == f"127.0.0.1:{port}")
    assert not made["failed"] and made["took_ns"] > 0
    flows = recorded(records).summary["flows"]
    incoming = next(f for f in flows if f["direction"] == "in" and f["port"] == port)
    assert incoming["received_bytes"] >= 1 << 20 and incoming["closed"] == 1
    outgoing = next(f for f in flows if f["direction"] == "out" and f["port"] == port)
    assert outgoing["count"] == 1 and outgoing["failed"] == 0
    assert "ECONNREFUSED" in shown("connections", records)


QUERY = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x04slow\x07example\x00\x00\x01\x00\x01"


def test_names_are_timed_and_the_unanswered_listed() -> None:
    needs_probe("dns")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        try:
            server.bind(("127.77.3.1", 53))
        except OSError as e:
            pytest.skip(f"no name server may listen here: {e}")
        client.connect(("127.77.3.1", 53))

        def work() -> None:
            client.send(QUERY)
            data, peer = server.recvfrom(512)
            threading.Event().wait(0.08)
            server.sendto(data[:2] + b"\x81\x82" + data[4:], peer)  # server failure
            assert client.recv(512)[:2] == data[:2]
            client.send(b"\x56\x78" + QUERY[2:])
            threading.Event().wait(1.1)

        records = watch_while("dns", Settings(seconds=None), work)
    event = next(e for e in events(records) if e["server"] == "127.77.3.1")
    assert event["question"] == "slow.example A" and event["answer"] == "server failure"
    assert event["took_ns"] >= 80_000_000 and event["task"]["pid"] == os.getpid()
    unanswered = recorded(records).summary["unanswered"]
    assert [u["question"] for u in unanswered if u["server"] == "127.77.3.1"] == ["slow.example A"]
    assert "slow.example" in shown("dns", records)


def test_signals_name_sender_and_receiver() -> None:
    needs_probe("signals")
    with child("time.sleep(1000)") as process:
        records = watch_while(
            "signals", Settings(seconds=None), lambda: process.send_signal(signal.SIGTERM)
        )
    event = next(e for e in events(records) if e["task"]["pid"] == process.pid)
    assert event["signal"] == "SIGTERM" and event["from"]["pid"] == os.getpid()
    assert event["result"] == "delivered"
    assert "SIGTERM" in shown("signals", records)


def test_a_fault_is_the_kernels_own_signal() -> None:
    needs_probe("signals")
    with child("import ctypes; ctypes.string_at(1)") as process:

        def work() -> None:
            go(process)
            process.wait()

        records = watch_while("signals", Settings(seconds=None, pid=process.pid), work)
    event = next(e for e in events(records) if e["signal"] == "SIGSEGV")
    assert event["from"] is None and event["task"]["pid"] == process.pid


def test_interrupts_are_counted_with_whose_time_it_was() -> None:
    needs_probe("irq")
    with child("while True: pass") as process:
        go(process)
        for _ in range(PATIENCE):
            records = list(
                watch(find_tool("irq"), Settings(seconds=1, threshold_ns=1), threading.Event())
            )
            summary = recorded(records).summary
            if any(v["comm"].startswith("python") for v in summary["victims"]):
                break
    assert any(h["kind"] == "soft" and h["name"] == "TIMER" for h in summary["handlers"])
    assert all(h["max_ns"] <= h["total_ns"] for h in summary["handlers"])
    assert any(v["comm"].startswith("python") for v in summary["victims"])
    assert "TIMER" in shown("irq", records)


def test_a_lock_that_many_want_is_found(tmp_path: Path) -> None:
    needs_probe("locks")
    # A directory has one lock, and each of these wants it for itself.
    code = (
        "d = sys.argv[1]\n"
        "n = os.path.join(d, str(os.getpid()))\n"
        "while True:\n"
        "    os.close(os.open(n, os.O_CREAT)); os.unlink(n)\n"
    )
    with (
        child(code, str(tmp_path)) as one,
        child(code, str(tmp_path)) as two,
        child(code, str(tmp_path)) as three,
    ):
        for process in (one, two, three):
            go(process)
        for _ in range(PATIENCE):
            records = list(watch(find_tool("locks"), Settings(seconds=1), threading.Event()))
            waits = recorded(records).summary["waits"]
            if any(w["comm"].startswith("python") for w in waits):
                break
    wait = next(w for w in waits if w["comm"].startswith("python"))
    assert wait["count"] > 0 and wait["total_ns"] >= wait["max_ns"] > 0 and wait["stack"]
    assert wait["kind"] in shown("locks", records)
    assert find_tool("locks").stacks_of(recorded(records))


def test_large_blocks_have_who_asked_for_them() -> None:
    needs_probe("orders")
    # What TCP sends is kept in blocks of 32 KiB (SKB_FRAG_PAGE_ORDER, net/core/sock.c).
    code = (
        "import socket\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "while True:\n"
        "    c = socket.create_connection(s.getsockname()); p, _ = s.accept()\n"
        "    c.sendall(b'x' * 100000); c.close(); p.close()\n"
    )
    with child(code) as process:
        go(process)
        for _ in range(PATIENCE):
            records = list(
                watch(find_tool("orders"), Settings(seconds=1, pid=process.pid), threading.Event())
            )
            asked = recorded(records).summary["asked"]
            if asked:
                break
    assert asked
    assert all(a["order"] >= 3 and a["comm"].startswith("python") for a in asked)
    assert any("tcp" in frame or "sk_page" in frame for a in asked for frame in a["stack"])
    assert "8" in shown("orders", records)


# --- What needs no kernel -------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_any_packet_gives_a_question_that_a_terminal_may_show(data: bytes) -> None:
    assert question(data).isprintable()


def test_questions() -> None:
    assert question(b"\x01a\x02bc\x00\x00\x1c\x00\x01") == "a.bc AAAA"
    assert question(b"\x00\x00\x02") == ". NS"
    assert question(b"\x03ab") == "..."
    assert question(b"\x01a\xc0\x0c") == "a..."
    assert question(b"\x01\x1b\x00\x00\x01") == "? A"


def test_numbers_have_names() -> None:
    assert signal_name(9) == "SIGKILL" and signal_name(40) == f"SIGRTMIN+{40 - signal.SIGRTMIN}"
    assert kind_of_lock(1) == "spinlock" and kind_of_lock(32) == "mutex"
    assert kind_of_lock(2) == "semaphore (read)" and kind_of_lock(5) == "rwlock (write)"
    assert kind_of_lock(16 | 4) == "per-CPU semaphore (write)"
    number = syscall_number("fsync")
    assert number is not None and syscall_name(number) == "fsync"
    assert syscall_number("no_such_call") is None and syscall_name(100_000) is None
    assert address(False, bytes([127, 0, 0, 1] + [0] * 12), 80) == "127.0.0.1:80"
    assert address(True, bytes(15) + b"\x01", 80) == "[::1]:80"
    assert device_name(8 << 20 | 1) == "8:1"


def test_a_file_has_a_path_while_it_is_open(tmp_path: Path) -> None:
    with (tmp_path / "open").open("wb") as f:
        about = os.fstat(f.fileno())
        device = os.major(about.st_dev) << 20 | os.minor(about.st_dev)
        assert path_of(os.getpid(), device, about.st_ino) == str(tmp_path / "open")
        assert path_of(os.getpid(), device, about.st_ino, fd=f.fileno()) == str(tmp_path / "open")
        assert path_of(os.getpid(), device, about.st_ino + 1, fd=f.fileno()) is None
    assert path_of(2**22 - 1, device, about.st_ino) is None
