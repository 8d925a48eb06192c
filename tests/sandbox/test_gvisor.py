"""The class `gvisor`: the same box, with a kernel that is a program."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox.conftest import Served, descendants, until

from tegu.errors import SandboxError, UnsupportedError
from tegu.linux.cgroups import Groups
from tegu.sandbox import thin
from tegu.sandbox.client import Sandbox, box_spec, run
from tegu.sandbox.gvisor import trial
from tegu.sandbox.gvisor.programs import descends, parents_by_pid

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="gVisor needs root's supervisor"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found, reason = trial.try_runsc(tmp_path_factory.mktemp("trial"))
    if not found:
        pytest.skip(f"class gvisor: {reason}")
    one = Served(warm=0)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def held(root: Served) -> Iterator[Sandbox]:
    """One box for all that does not harm it."""
    with Sandbox.create(kind="gvisor", path=root.path) as one:
        yield one


def runscs(root: Served) -> list[int]:
    """The pids of runsc's processes below a supervisor."""
    found = []
    for pid in descendants(root.keeper.pid):
        try:
            name = Path(f"/proc/{pid}/comm").read_text()
        except OSError:
            continue
        if name.startswith(("runsc", "exe")):
            found.append(pid)
    return found


def test_one_program(root: Served) -> None:
    spec = box_spec(kind="gvisor", hostname="inside")
    words = "cat; uname -r; hostname; id -u; pwd; echo $A; echo e >&2; exit 3"
    done = run(words, box=spec, stdin="in\n", env={"A": "x,y z"}, cwd="/usr", path=root.path)
    lines = done.text.splitlines()
    assert lines[0] == "in"
    assert lines[1] != platform.release()  # a kernel of its own
    assert lines[2:] == ["inside", "0", "/usr", "x,y z"]
    assert (done.stderr, done.exit_code) == (b"e\n", 3)
    assert until(lambda: not runscs(root))


def test_programs_of_a_box_that_lives(held: Sandbox) -> None:
    assert held.run("echo $HOME; echo x > /root/f; cat /root/f").text == "/root\nx\n"
    assert held.run("id -u; id -G", user="7:8,9").text == "7\n8 9\n"
    done = held.run("kill -9 $$")
    assert (done.exit_code, done.signal) == (137, 9)
    process = held.start("trap 'echo told; exit 4' TERM; echo up; while :; do sleep 0.05; done")
    heard = b""
    for _, data in process.output():
        heard += data
        if heard == b"up\n":
            process.signal(signal.SIGTERM)
    assert (heard, process.wait().exit_code) == (b"up\ntold\n", 4)
    for name, code in (("/no/such", 2), ("no-such", 2), ("/etc", 13), ("/etc/passwd", 13)):
        with pytest.raises(SandboxError, match=f"cannot start {name}") as e:
            held.run([name])
        assert getattr(e.value, "number", code) == code


def test_files(held: Sandbox) -> None:
    held.files.write("/tmp/in", b"data")
    assert held.run("cat /tmp/in; printf more >> /tmp/in; ln -s /etc/passwd /tmp/l").text == "data"
    assert held.files.read("/tmp/in") == b"datamore"
    assert b"nobody" in held.files.read("/tmp/l")  # the box's own
    held.files.mkdir("/tmp/d")
    assert {"d", "in", "l"} <= {e.name for e in held.files.list("/tmp")}
    # By the shell: runsc of 2022 does not know the statx(2) flags of today's ls.
    assert held.run("test -d /tmp/d").exit_code == 0
    held.files.remove("/tmp/d")
    assert held.run("test -d /tmp/d").exit_code == 1
    with pytest.raises(SandboxError, match="/proc/1/environ"):
        held.files.read("/proc/1/environ")


def test_the_host_is_out_of_reach(held: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    assert held.run(["cat", str(tmp_path / "secret")]).exit_code != 0
    assert held.run("echo x > /usr/bin/tegu-was-here").exit_code != 0
    assert not Path("/usr/bin/tegu-was-here").exists()
    up = "../" * 20 + str(tmp_path)[1:] + "/made"
    held.run(["ln", "-sf", up, "/tmp/out"])
    with pytest.raises(SandboxError):
        held.files.write("/tmp/out", b"x")
    assert not (tmp_path / "made").exists()
    pids = held.run("set -- /proc/[0-9]*; echo $#").text
    assert int(pids) < 10
    raw = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"
    assert b"Error" in held.run(["python3", "-c", raw]).stderr
    away = "import socket; socket.create_connection(('192.0.2.1', 9), 5)"
    assert b"OSError" in held.run(["python3", "-c", away]).stderr


def test_a_timeout_takes_what_the_program_left(held: Sandbox) -> None:
    held.run("setsid sleep 4441 > /dev/null 2>&1 &")  # of an earlier run: spared
    beside = held.start(["sleep", "4442"])
    done = held.run("setsid sleep 4443 & (setsid sleep 4444 &); sleep 4445", timeout=1)
    assert (done.timed_out, done.exit_code) == (True, 137)
    left = held.run("ps ax -o args").text
    assert [f"sleep {n}" in left for n in range(4441, 4446)] == [True, True, False, False, False]
    beside.kill()
    assert beside.wait().exit_code == 137


def test_pause_and_resume(held: Sandbox) -> None:
    held.pause()
    assert held.info()["state"] == "paused"
    held.resume()
    assert held.run("echo on").text == "on\n"


def test_a_box_ends_whole(root: Served) -> None:
    others = set(runscs(root))
    box = Sandbox.create(kind="gvisor", path=root.path)
    before = set(runscs(root)) - others
    process = box.start(["sleep", "4446"])
    box.kill()
    with pytest.raises(SandboxError):
        process.wait()
    with pytest.raises(SandboxError):
        box.run("true")
    box.close()
    done = run("sleep 4447", box=box_spec(kind="gvisor"), timeout=2, path=root.path)
    assert done.timed_out
    assert before
    assert until(lambda: not set(runscs(root)) - others)


def test_its_kernel_killed(root: Served) -> None:
    others = set(runscs(root))
    with Sandbox.create(kind="gvisor", path=root.path) as box:
        process = box.start(["sleep", "4448"])
        sentry = [
            pid
            for pid in set(runscs(root)) - others
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runsc-sandbox")
        ]
        assert sentry
        os.kill(sentry[0], signal.SIGKILL)
        with pytest.raises(SandboxError):
            process.wait().check()
        assert until(lambda: not set(runscs(root)) - others)


def test_limits(root: Served) -> None:
    spec = box_spec(kind="gvisor", disk="4M", files=128)
    done = run("dd if=/dev/zero of=/tmp/f bs=1M count=9", box=spec, path=root.path)
    assert b"No space left" in done.stderr
    assert run("ulimit -n", box=spec, path=root.path).text == "128\n"
    spec = box_spec(kind="gvisor", read_only=True)
    done = run("echo x > /tmp/f; cat /tmp/f; echo x > /root/f", box=spec, path=root.path)
    assert (done.text, done.exit_code != 0) == ("x\n", True)


def test_memory(root: Served) -> None:
    spec = box_spec(kind="gvisor", memory="128M")
    if not Groups.find(os.getpid()).provider("memory"):
        with pytest.raises(UnsupportedError, match="memory"):
            run(["true"], box=spec, path=root.path)
        return
    eat = ["python3", "-c", "x = b'x' * (1 << 30); print(len(x))"]
    done = run(eat, box=spec, path=root.path)
    assert (done.exit_code, done.out_of_memory, done.stdout) == (137, True, b"")


def test_a_fork_bomb_is_held(root: Served) -> None:
    bomb = (
        "import os, time\n"
        "n = 0\n"
        "try:\n"
        "    while n < 3000:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(4450)\n"
        "        n += 1\n"
        "finally:\n"
        "    print(n, flush=True)\n"
        "    os._exit(0)\n"
    )
    spec = box_spec(kind="gvisor", pids=32)
    try:
        done = run(["python3", "-c", bomb], box=spec, timeout=60, path=root.path)
    except SandboxError:
        pass  # gVisor itself found no room: the box has ended
    else:
        assert done.timed_out or done.exit_code != 0 or int(done.text) < 3000
    assert run("echo on", box=box_spec(kind="gvisor"), path=root.path).text == "on\n"


def test_output_to_files(root: Served, tmp_path: Path) -> None:
    """A file is written at its own offset, after what is there, and not over it."""
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("ab") as f:
        command = [sys.executable, "-S", "-I", thin.__file__, "--class", "gvisor", "--"]
        for n in range(2):
            subprocess.run(
                [*command, "sh", "-c", f"echo out{n}; echo err{n} >&2; seq 20000 | tail -1"],
                stdout=f,
                stderr=f,
                env={**os.environ, "TEGU_SANDBOX_SOCKET": str(root.path)},
                check=True,
            )
    lines = log.read_text().splitlines()
    assert lines[0] == "before"
    assert sorted(lines[1:]) == sorted(["out0", "err0", "20000", "out1", "err1", "20000"])


def test_no_init_is_its_own_end(root: Served) -> None:
    assert run("exit 5", box=box_spec(kind="gvisor", init=False), path=root.path).exit_code == 5


def test_secrets_are_refused(held: Sandbox) -> None:
    with pytest.raises(SandboxError, match="secrets do not reach"):
        held.run("cat $S", secrets={"S": b"x"})


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo noise >&2; echo 'cannot do that' >&2; exit 1", "cannot do that"),
        ("sleep 4449", "did not end within"),
    ],
)
def test_a_runsc_that_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "runsc").write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\n{script}\n")
    (tmp_path / "runsc").chmod(0o755)
    for _ in range(2):  # the second answer is the kept one
        found, reason = trial.try_runsc(tmp_path / "state", deadline=1)
        assert found == ""
        assert all(f"{name}: " in reason for name in trial.PLATFORMS)
        assert said in reason
    assert len((tmp_path / "calls").read_text().split()) == len(trial.PLATFORMS)


def test_no_runsc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "find_runsc", lambda: None)
    assert trial.try_runsc(tmp_path) == ("", "runsc is not installed (package runsc)")


def test_the_table_of_processes() -> None:
    table = (
        "UID       PID       PPID      C         TTY       STIME     TIME      CMD\n"
        "0         1         0         1         ?         19:20     0s        hold\n"
        "0         6         1         0         ?         19:20     0s        sleep\n"
        "0         7         6         0         ?         19:20     0s        sleep\nnonsense\n"
    )
    parents = parents_by_pid(table)
    assert parents == {6: 1, 7: 6}
    assert [descends(pid, parents, {6}) for pid in (6, 7, 1)] == [True, True, False]
    assert not descends(3, {3: 4, 4: 3}, {9})
