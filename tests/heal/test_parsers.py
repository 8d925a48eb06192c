"""What comes from outside: files of /proc, the kernel's log, name servers, mounts."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.heal.filesystems import busiest_directory, deleted_files
from tegu.heal.finding import unit_of
from tegu.heal.resolver import ask
from tegu.heal.rules.unit_leak import pattern
from tegu.heal.snapshot import parse_pressure, parse_stat, take
from tegu.linux.kernel_log import parse_line
from tegu.linux.mountinfo import parse_mountinfo

_LINES = [
    (
        "6,900,5000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,"
        "mems_allowed=0,oom_memcg=/a.service,task_memcg=/a.service/b,task=python3,pid=42,uid=0",
        "oom",
        {"limit": "/a.service", "cgroup": "/a.service/b", "comm": "python3", "pid": "42"},
    ),
    (
        "6,901,5000000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,"
        "mems_allowed=0,global_oom,task_memcg=/c.service,task=x,y,pid=43,uid=0",
        "oom",
        {"cgroup": "/c.service", "pid": "43"},
    ),
    (
        "3,1,1,-;I/O error, dev vdb, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
        "io-error",
        {"device": "vdb"},
    ),
    (
        "3,1,1,-;Buffer I/O error on dev dm-0, logical block 0, async page read",
        "io-error",
        {"device": "dm-0"},
    ),
    (
        "2,1,1,-;EXT4-fs error (device loop0): ext4_lookup:1855: inode #2: comm ls",
        "fs-error",
        {"device": "loop0"},
    ),
    (
        "0,1,1,-;watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [kworker/1:2:99]",
        "soft-lockup",
        {"comm": "kworker/1:2", "pid": "99", "cpu": "1", "seconds": "23"},
    ),
    (
        "3,1,1,-;INFO: task dd:764 blocked for more than 120 seconds.",
        "hung-task",
        {"comm": "dd", "pid": "764"},
    ),
    ("4,1,1,-;nf_conntrack: nf_conntrack: table full, dropping packet", "conntrack-full", {}),
]


@pytest.mark.parametrize(("line", "kind", "about"), _LINES)
def test_words_of_the_kernel(line: str, kind: str, about: dict[str, str]) -> None:
    event = parse_line(line)
    assert event is not None and event.kind == kind
    assert about.items() <= event.about.items()


def test_words_of_others_are_not_the_kernels() -> None:
    # Facility 1 (user): any root process may write to /dev/kmsg.
    assert parse_line("12,1,1,-;BUG: soft lockup - CPU#1 stuck for 23s! [x:9]") is None
    assert parse_line("6,1,1,-;random: crng init done") is None


@given(st.text())
def test_any_text(text: str) -> None:
    parse_line(text)
    parse_line(f"6,1,1,-;{text}")
    parse_stat(text)
    parse_stat(f"1 ({text}) S 1")
    parse_mountinfo(text)
    parse_pressure(text)
    unit_of(text)
    assert isinstance(pattern(text), str)


def test_a_name_with_everything_in_it() -> None:
    tail = " ".join(["S", "7", *["0"] * 9, "150", "50", *["0"] * 6, "999"])
    found = parse_stat(f"12 (a) (b c) {tail}")
    assert found is not None
    assert (found.pid, found.comm, found.parent, found.started) == (12, "a) (b c", 7, 999)


def test_mountinfo() -> None:
    line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
    (mount,) = parse_mountinfo(line + "\nnonsense\n")
    assert mount == ("98:0", "/mnt1", "/mnt 2", "ext3", "/dev/root")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("job@7.service", "job@*.service"),
        ("run-r0123456789abcdef.service", "run-*.service"),
        ("run-u123.service", "run-*.service"),
        ("ssh.service", "ssh.service"),
        ("backup-20261121.service", "backup-*.service"),
    ],
)
def test_patterns_of_units(name: str, expected: str) -> None:
    assert pattern(name) == expected


def test_units_of_groups() -> None:
    assert unit_of("/system.slice/web.service") == "web.service"
    assert unit_of("/system.slice/pod.service/inner") == "pod.service"
    assert unit_of("/lab") == ""


def test_this_machine() -> None:
    seen = take()
    assert os.getpid() in seen.processes
    assert seen.memory["MemTotal"] > 1 << 20
    assert seen.cpu["user"] > 0 and "Tcp.OutSegs" in seen.net


def test_a_root_with_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    seen = take(tmp_path)
    assert not seen.groups and not seen.processes and not seen.memory


def test_deleted_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as log, (tmp_path / "kept").open("wb") as kept:
        log.write(bytes(100_000))
        log.flush()
        path.unlink()
        device = os.fstat(log.fileno()).st_dev
        mine = [f for f in deleted_files(Path("/proc"), [os.getpid()], device) if "log" in f.name]
        (one,) = mine
        assert (one.pid, one.fd, one.append_only) == (os.getpid(), log.fileno(), True)
        assert one.size >= 100_000 and kept.fileno() != one.fd


def test_busiest_directory(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 9)):
        (tmp_path / name).mkdir()
        for n in range(count):
            (tmp_path / name / str(n)).touch()
    assert busiest_directory(str(tmp_path)) == (str(tmp_path / "b"), 9, True)
    assert not busiest_directory(str(tmp_path), most=2)[2]


def test_asking_a_name_server() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

        def answer() -> None:
            data, who = server.recvfrom(512)
            server.sendto(b"xx", who)  # too short, and not ours
            server.sendto(data[:2] + b"\x81\x80" + data[4:], who)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert ask("127.0.0.1", port) == (True, "")
        thread.join()
    good, why = ask("127.0.0.1", port)
    assert not good and why
