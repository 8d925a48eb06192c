"""The class `process`: programs held without namespaces, and what they must not reach."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox.conftest import Served, marked_sleep, pids_of, until

from tegu.errors import SandboxError, UsageError
from tegu.linux import landlock
from tegu.sandbox.bare import FIRST_ID, IDS, processes_of
from tegu.sandbox.client import Result, Sandbox, box_spec, run

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the class process needs root's supervisor"),
    pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock"),
]


@pytest.fixture(scope="module")
def root() -> Iterator[Served]:
    one = Served(warm=0)
    yield one
    one.stop()


@pytest.fixture
def held(root: Served) -> Iterator[Sandbox]:
    with Sandbox.create(kind="process", path=root.path) as one:
        yield one


def python(box: Sandbox, script: str) -> Result:
    return box.run(["python3", "-c", script])


def test_runs_as_nobody_else_in_a_directory_of_its_own(root: Served) -> None:
    spec = box_spec(kind="process")
    done = run(
        "id -u; pwd; echo x > f; cat f; cat >&2; exit 3", box=spec, stdin="in\n", path=root.path
    )
    user, where, text = done.text.split()
    assert FIRST_ID <= int(user) < FIRST_ID + IDS
    assert (where, text, done.stderr, done.exit_code) == ("/tmp", "x", b"in\n", 3)
    assert run("id -u; ls /tmp", box=spec, path=root.path).text.split() != [user]
    assert until(lambda: not list(processes_of(int(user))))


def test_files_are_its_own(held: Sandbox) -> None:
    held.files.mkdir("/tmp/d")
    held.files.write("/tmp/d/f", b"data")
    assert held.run("cat d/f").text == "data"
    assert [e.name for e in held.files.list("/tmp/d")] == ["f"]
    held.files.remove("/tmp/d/f")
    held.files.remove("/tmp/d")
    with pytest.raises(SandboxError, match="/etc/shadow: Permission denied"):
        held.files.read("/etc/shadow")
    held.run("ln -s /etc/hostname link").check()
    with pytest.raises(SandboxError):
        held.files.read("/tmp/link")


def test_the_host_cannot_be_read_or_written(held: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    tmp_path.chmod(0o777)
    (tmp_path / "secret").chmod(0o666)
    for path in (tmp_path / "secret", "/etc/hostname", "/proc/1/cmdline", "/proc/self/status"):
        assert held.run(["cat", str(path)]).exit_code != 0, path
    assert held.run(f"echo x > {tmp_path}/secret").exit_code != 0
    for path in ("/var/tmp/f", "/dev/shm/f", "/usr/f", "/run/f"):
        assert held.run(f"echo x > {path}").exit_code != 0, path
    assert held.run(["ls", "/"]).exit_code != 0


def test_no_sockets_but_a_pair(held: Sandbox) -> None:
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
        done = python(held, f"import socket; socket.socket(socket.{family})")
        assert b"PermissionError" in done.stderr, family
    assert python(held, "import socket; socket.socketpair(); import asyncio").exit_code == 0


def test_no_shared_memory_ids_or_namespaces(held: Sandbox) -> None:
    script = (
        "import ctypes, errno; c = ctypes.CDLL(None, use_errno=True)\n"
        "for name, args in (('shmget', (1, 4096, 0o1777)), ('setuid', (0,)), ('chroot', (b'/',)),\n"
        "    ('unshare', (0x10000000,)), ('ptrace', (0, 0, 0, 0)), ('mq_unlink', (b'/x',))):\n"
        "    r = getattr(c, name)(*args); print(name, r, errno.errorcode.get(ctypes.get_errno()))\n"
    )
    for line in python(held, script).text.splitlines():
        _, result, error = line.split()
        assert result == "-1", line
        assert error in ("EACCES", "EPERM"), line


def test_it_can_signal_no_other(held: Sandbox, root: Served) -> None:
    with Sandbox.create(kind="process", path=root.path) as other:
        sleeper = marked_sleep()
        sleeping = other.start(sleeper)
        assert until(lambda: len(pids_of(sleeper)) == 1)
        assert held.run("kill -9 -1; kill -9 1; true").exit_code in (0, 1, 137)
        assert len(pids_of(sleeper)) == 1
        assert other.run("echo lives").text == "lives\n"
        sleeping.kill()
        assert sleeping.wait().signal == signal.SIGKILL


def test_a_timeout_takes_what_the_program_left(held: Sandbox) -> None:
    sleeper = marked_sleep()
    words = " ".join(sleeper)
    assert held.run(f"setsid {words} & setsid {words} & {words}", timeout=1).timed_out
    assert until(lambda: not pids_of(sleeper))
    assert held.run("echo lives").text == "lives\n"


def test_the_end_of_a_box_is_the_end_of_all_in_it(root: Served) -> None:
    sleeper = marked_sleep()
    with Sandbox.create(kind="process", path=root.path) as one:
        one.run(f"setsid {' '.join(sleeper)} >/dev/null 2>&1 &").check()
        assert until(lambda: len(pids_of(sleeper)) == 1)
    assert until(lambda: not pids_of(sleeper))


def test_a_fork_bomb_is_held(root: Served) -> None:
    spec = box_spec(kind="process", pids=40)
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    done = run(["python3", "-c", bomb], box=spec, timeout=3, path=root.path)
    assert done.timed_out
    users = range(FIRST_ID, FIRST_ID + 64)
    assert until(lambda: not any(list(processes_of(user)) for user in users))


def test_limits_on_disk_and_descriptors(root: Served) -> None:
    spec = box_spec(kind="process", disk="1M", files=128)
    done = run("dd if=/dev/zero of=a bs=1M count=4; ulimit -n", box=spec, path=root.path)
    assert done.text.strip() == "128"
    done = run("for i in 1 2 3; do head -c 900000 /dev/zero > $i; done", box=spec, path=root.path)
    assert b"No space" in done.stderr


def test_secrets_pause_and_exit_codes(held: Sandbox) -> None:
    assert held.run('cat "$KEY"', secrets={"KEY": b"sealed"}).stdout == b"sealed"
    assert held.run("kill -SEGV $$").signal == signal.SIGSEGV
    with pytest.raises(SandboxError, match="cannot start nonesuch: No such file"):
        held.run(["nonesuch"])
    held.pause()
    assert held.info()["state"] == "paused"
    held.resume()
    assert held.run("echo on").text == "on\n"


def test_what_it_has_not_is_refused(root: Served, tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    with pytest.raises(UsageError, match="sees this machine's programs"):
        Sandbox.create(str(tmp_path), kind="process", path=root.path)
    with pytest.raises(UsageError, match="read_only"):
        Sandbox.create(kind="process", read_only=True, path=root.path)
