"""Programs in boxes: streams, ends, limits, files; and boxes that end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sandbox.conftest import marked_sleep, pids_of, until

import tegu.process
from tegu.errors import SandboxError, TeguError, UnsupportedError, UsageError
from tegu.sandbox import AsyncSandbox, BoxSpec, Sandbox, aio, run
from tegu.sandbox.client import box_spec, supervisor


def enforced(limit: str) -> bool:
    found = {f["name"]: f for f in supervisor("doctor")}
    return bool(found[limit]["available"])


def test_streams_and_exit_code(path: Path) -> None:
    done = run("cat; echo oops >&2; exit 3", stdin="hello")
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"hello", b"oops\n")
    with pytest.raises(SandboxError, match="exited with 3: oops"):
        done.check()


def test_much_in_and_much_out(path: Path) -> None:
    data = os.urandom(3_000_000)
    assert run(["cat"], stdin=data).stdout == data


def test_a_program_that_does_not_read_its_input(path: Path) -> None:
    assert run(["true"], stdin=b"x" * 1_000_000).exit_code == 0


def test_environment_and_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_SECRET", "must not be seen")
    done = run("pwd; echo $A; env", env={"A": "é b"}, cwd="/usr")
    assert done.text.startswith("/usr\né b\n")
    assert "HOST_SECRET" not in done.text


def test_a_program_that_is_not_there(path: Path, box: Sandbox) -> None:
    for start in (run, box.run):
        with pytest.raises(SandboxError, match="cannot start no-such-program"):
            start(["no-such-program"])
        with pytest.raises(SandboxError, match="cannot start true"):
            start(["true"], cwd="/nowhere")
        with pytest.raises(SandboxError, match="cannot start /etc/passwd"):
            start(["/etc/passwd"])
    assert box.run(["true"]).exit_code == 0


def test_a_timeout_kills_everything_and_says_so(path: Path) -> None:
    done = run("setsid sleep 1000 & (sleep 1000 &) ; sleep 1000", timeout=0.3)
    assert done.timed_out
    assert done.signal == signal.SIGKILL
    with pytest.raises(SandboxError, match="timeout"):
        done.check()


def test_a_timeout_in_a_living_box_kills_what_was_started(box: Sandbox) -> None:
    done = box.run("setsid sleep 1001 & (setsid sleep 1002 &) ; sleep 1003", timeout=0.3)
    assert done.timed_out
    assert until(lambda: "sleep" not in box.run("cat /proc/*/cmdline").text)


def test_a_timeout_spares_other_programs_of_the_box(box: Sandbox) -> None:
    other = box.start("(setsid sleep 1004 &) ; read x; echo lives")
    assert until(lambda: "1004" in box.run("cat /proc/*/cmdline | tr '\\0' ' '").text)
    assert box.run("(setsid sleep 1005 &) ; sleep 1006", timeout=0.3).timed_out
    assert until(lambda: "1006" not in box.run("cat /proc/*/cmdline | tr '\\0' ' '").text)
    other.write("go\n")
    assert other.wait().stdout == b"lives\n"


def commands(box: Sandbox) -> str:
    return box.run("cat /proc/*/cmdline | tr '\\0' ' '").text


def test_a_timeout_spares_what_earlier_runs_left(box: Sandbox) -> None:
    assert box.run("(setsid sleep 1015 &) ; sleep 1016 & echo left").text == "left\n"
    assert box.run("(setsid sleep 1017 &) ; sleep 1018", timeout=0.3).timed_out
    assert until(lambda: not {"1017", "1018"} & set(commands(box).split()))
    assert {"1015", "1016"} <= set(commands(box).split())


def test_a_kill_spares_what_a_run_left_that_began_later_and_ended(box: Sandbox) -> None:
    process = box.start("sleep 1019 & echo up; sleep 1020")
    assert next(process.output()) == ("stdout", b"up\n")
    assert box.run("sleep 1021 & echo left").text == "left\n"
    process.kill()
    assert process.wait().signal == signal.SIGKILL
    assert until(lambda: not {"1019", "1020"} & set(commands(box).split()))
    assert "1021" in commands(box).split()


def test_a_kill_beats_a_program_that_forks_away(box: Sandbox) -> None:
    box.run("sleep 1022 & echo left")
    bomb = "while :; do (setsid sleep 1023 &) ; done"
    assert box.run(["/bin/sh", "-c", bomb], timeout=0.5).timed_out
    assert until(lambda: "1023" not in commands(box).split())
    assert "1022" in commands(box).split()


def test_zygotes_are_what_was_asked_for(path: Path, request: pytest.FixtureRequest) -> None:
    run("true")
    wanted = request.node.callspec.params["served"]
    assert supervisor("list")["zygotes"]["host"] == wanted


def test_a_background_process_does_not_hold_a_run_up(box: Sandbox) -> None:
    assert box.run("sleep 1000 & echo started").text == "started\n"


def test_secrets_come_by_descriptor_and_not_in_the_environment(path: Path, box: Sandbox) -> None:
    for start in (run, box.run):
        done = start(
            "cat $ONE $TWO; ls /proc/self/fd | wc -l; env", secrets={"ONE": b"s3", "TWO": b"cret"}
        )
        assert done.text.startswith("s3cret")
        assert "s3cret" not in done.text.split("\n", 1)[1]
        failed = start("echo x > $ONE", secrets={"ONE": b"s3"})
        assert failed.exit_code != 0


def test_output_streams_as_it_comes(box: Sandbox) -> None:
    process = box.start("echo first; read x; echo got $x; echo err >&2")
    seen = []
    for name, data in process.output():
        seen.append((name, data))
        if data == b"first\n":
            process.write("word\n")
    assert (b"got word\n") in b"".join(d for n, d in seen if n == "stdout")
    assert ("stderr", b"err\n") in seen
    assert process.wait().exit_code == 0


def test_signals_and_kill(box: Sandbox) -> None:
    process = box.start("trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    stream = process.output()
    assert next(stream) == ("stdout", b"ready\n")
    process.signal(signal.SIGTERM)
    assert process.wait().exit_code == 7
    process = box.start("sleep 1000")
    process.kill()
    assert process.wait().signal == signal.SIGKILL


def test_files(box: Sandbox) -> None:
    box.files.write("/tmp/a", b"\0\xff")
    assert box.files.read("/tmp/a") == b"\0\xff"
    assert box.run("wc -c < /tmp/a").text.strip() == "2"
    box.files.mkdir("/tmp/d")
    box.files.write("/tmp/d/x", "text")
    box.run("ln -s x /tmp/d/link").check()
    kinds = {e.name: e.kind for e in box.files.list("/tmp/d")}
    assert kinds == {"x": "file", "link": "link"}
    assert box.files.read("/tmp/d/link") == b"text"
    with pytest.raises(SandboxError, match=r"/tmp/d: .*[Nn]ot empty"):
        box.files.remove("/tmp/d")
    for name in ("x", "link"):
        box.files.remove(f"/tmp/d/{name}")
    box.files.remove("/tmp/d")
    with pytest.raises(SandboxError, match=r"/tmp/d: No such file"):
        box.files.list("/tmp/d")
    with pytest.raises(UsageError, match="absolute"):
        box.files.read("tmp/a")


def test_a_pipe_or_device_is_no_file(box: Sandbox) -> None:
    box.run("mkfifo /tmp/pipe").check()
    for name in ("/tmp/pipe", "/dev/zero", "/proc"):
        with pytest.raises(SandboxError):
            box.files.read(name)


def test_what_is_written_stays_in_the_box(path: Path) -> None:
    with Sandbox.create() as one, Sandbox.create() as other:
        one.run("echo x > /tmp/mine; echo y > /etc/mine; mkdir -p /opt/mine").check()
        assert other.run("ls /tmp/mine /etc/mine /opt/mine").stdout == b""
    assert not Path("/etc/mine").exists()


def test_a_read_only_box(path: Path) -> None:
    spec = box_spec(read_only=True)
    done = run("echo x > /etc/x; echo y > /usr/y; echo z > /tmp/z && cat /tmp/z", box=spec)
    assert done.text == "z\n"
    assert done.stderr.count(b"Read-only") + done.stderr.count(b"cannot create") >= 2


def test_the_disk_limit(path: Path) -> None:
    done = run("head -c 3M /dev/zero > /tmp/x", box=box_spec(disk="1M"))
    assert b"No space left" in done.stderr
    assert done.exit_code != 0


def test_a_box_has_only_loopback(box: Sandbox) -> None:
    seen = box.run("cat /proc/net/dev").text
    assert [line.split(":")[0].strip() for line in seen.splitlines()[2:]] == ["lo"]
    script = (
        "import socket; s=socket.create_server(('127.0.0.1', 0)); "
        "c=socket.create_connection(s.getsockname()); print('up')"
    )
    assert box.run(["python3", "-c", script]).text == "up\n"


def test_a_file_that_claims_to_be_huge_is_not_read(box: Sandbox) -> None:
    box.run("truncate -s 1T /tmp/huge; printf abcd > /tmp/four").check()
    with pytest.raises(SandboxError, match="/tmp/huge: more than 268435456 bytes"):
        box.files.read("/tmp/huge")
    with pytest.raises(SandboxError, match="more than 3 bytes"):
        box.files.read("/tmp/four", max_bytes=3)
    assert box.files.read("/tmp/four", max_bytes=4) == b"abcd"


def test_names_that_are_not_utf_8(box: Sandbox) -> None:
    box.run(["python3", "-c", r"open(b'/tmp/\xff\n', 'w').write('found')"]).check()
    (entry,) = box.files.list("/tmp")
    name = f"/tmp/{entry.name}"
    assert box.files.read(name) == b"found"
    box.files.write(name, "again")
    assert box.run(["cat", name]).text == "again"
    box.files.remove(name)
    for bad in ("/\ud800", "/tmp/\ud800/x"):
        with pytest.raises(UsageError, match="no character"):
            box.files.read(bad)
        with pytest.raises(UsageError, match="no character"):
            box.run(["true"], cwd=bad)
    assert box.run(["true"]).exit_code == 0


def test_the_lowest_limits_let_a_program_start(path: Path) -> None:
    secrets = {f"S{i}": b"x" for i in range(32)}
    for init in (True, False):
        spec = box_spec(pids=2, files=128, init=init)
        done = run("ulimit -n; ulimit -p", box=spec, secrets=secrets)
        assert done.text.split()[0] == "128"
        assert done.exit_code == 0
    with Sandbox.create(pids=2, files=128) as box:
        assert box.run(["cat", "/proc/self/fd/34"], secrets=secrets).text == "x"
    for bad in ({"pids": 1}, {"files": 127}):
        with pytest.raises(UsageError, match="is not between"):
            box_spec(**bad)


def test_pause_and_resume(box: Sandbox) -> None:
    process = box.start("while :; do echo tick; sleep 0.01; done")
    stream = process.output()
    next(stream)
    box.pause()
    states = box.run  # a new run starts in a paused box: only what ran was stopped
    assert until(lambda: "T (stopped)" in states("grep -h State /proc/[0-9]*/status").text)
    box.resume()
    assert until(lambda: "T (stopped)" not in states("grep -h State /proc/[0-9]*/status").text)
    process.kill()
    process.wait()


def test_calls_on_a_dead_box_fail_at_once(path: Path) -> None:
    box = Sandbox.create()
    waiting = box.start("sleep 1000")
    box.kill()
    with pytest.raises(SandboxError, match="ended"):
        waiting.wait()
    for call in (lambda: box.run(["true"]), lambda: box.files.read("/x"), box.pause, box.info):
        with pytest.raises(SandboxError, match="there is no box"):
            call()
    box.close()


def test_a_box_reaches_its_timeout(path: Path) -> None:
    for seconds in (0.5, 4.0, 32.0):
        with Sandbox.create(timeout=seconds) as box:
            try:
                done = box.start("sleep 1000").wait()
            except SandboxError:
                continue  # a busy machine was slower than the timeout
            assert done.timed_out
            with pytest.raises(SandboxError, match="there is no box"):
                box.run(["true"])
            return
    pytest.fail("nothing started within 32 seconds")


def test_a_kept_box_is_found_again(path: Path) -> None:
    first = Sandbox.create(keep=True, env={"A": "1"})
    first.run("echo kept > /tmp/x").check()
    first.close()
    second = Sandbox.attach(first.name)
    assert second.run("cat /tmp/x").text == "kept\n"
    assert second.info()["state"] == "live"
    second.kill()
    second.close()
    with pytest.raises(SandboxError, match="there is no box"):
        Sandbox.attach(first.name)


def test_a_box_ends_with_its_client(path: Path) -> None:
    box = Sandbox.create()
    box.close()
    assert until(lambda: box.name not in [b["box"] for b in supervisor("list")["boxes"]])


def test_a_client_that_vanishes_takes_its_program_along(path: Path) -> None:
    with Sandbox.create(keep=True) as box:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.connect(str(path))
        sleep = marked_sleep()
        request = {"op": "run", "n": 1, "box": box.name, "run": {"argv": sleep}}
        null = os.open(os.devnull, os.O_RDWR)
        socket.send_fds(link, [json.dumps(request).encode()], [null] * 3)
        os.close(null)
        assert until(lambda: bool(pids_of(sleep)))
        link.close()
        assert until(lambda: not pids_of(sleep))
        box.kill()


def test_a_memory_limit(path: Path) -> None:
    spec = box_spec(memory="64M")
    if not enforced("memory"):
        with pytest.raises(UnsupportedError, match="memory"):
            run(["true"], box=spec)
        return
    done = run(["python3", "-c", "x = bytearray(300 << 20)"], box=spec)
    assert done.out_of_memory
    assert done.exit_code == 137
    assert run(["python3", "-c", "print(1)"], box=spec).text == "1\n"
    with Sandbox.create(memory="64M") as box:
        killed = box.run(["python3", "-c", "x = bytearray(300 << 20)"])
        assert killed.exit_code != 0
        assert 0 < box.info()["usage"]["memory"] <= 64 * 2**20


def test_a_cpu_limit(path: Path) -> None:
    spec = box_spec(cpus=0.1)
    if not enforced("cpus"):
        with pytest.raises(UnsupportedError, match="cpu"):
            run(["true"], box=spec)
        return
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    done = run(["python3", "-c", burn], box=spec)
    assert done.exit_code == 0
    # A tenth of a processor gives 0.3 s in 3 s at the soonest; a busy machine only adds to it.
    assert done.seconds > 1.0


def test_other_classes_are_refused_by_name(path: Path) -> None:
    for kind in ("tee",):
        with pytest.raises(UnsupportedError, match=f"class {kind}: "):
            run(["true"], box=box_spec(kind=kind))


def test_many_at_once(path: Path) -> None:
    answers: list[str] = []

    def one(i: int) -> None:
        answers.append(run(["echo", str(i)]).text.strip())

    threads = [threading.Thread(target=one, args=(i,)) for i in range(24)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(map(int, answers)) == list(range(24))


def test_a_directory_as_template(path: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("etc", "usr"):
        (root / name).mkdir(parents=True)
    (root / "etc/secret").write_text("of root\n")
    (root / "etc/secret").chmod(0o600)
    _copy_program("cat", root)
    before = sorted(p.name for p in root.iterdir())
    done = run([shutil.which("cat") or "cat", "/etc/secret"], box=BoxSpec(str(root)))
    assert (done.exit_code, done.text) == (0, "of root\n")
    with Sandbox.create(str(root)) as box:
        assert box.files.read("/etc/secret") == b"of root\n"
        box.files.write("/etc/secret", "mine")
        assert {"dev", "proc", "tmp"} <= {e.name for e in box.files.list("/")}
    assert (root / "etc/secret").read_text() == "of root\n"
    assert stat.S_IMODE((root / "etc/secret").stat().st_mode) == 0o600
    assert sorted(p.name for p in root.iterdir()) == before


def test_a_template_replaced_in_place_is_the_new_one(path: Path, tmp_path: Path) -> None:
    for word in ("old", "new"):
        _copy_program("cat", tmp_path / word)
        (tmp_path / word / "word").write_text(word)
    cat = [shutil.which("cat") or "cat", "/word"]
    (tmp_path / "old").rename(tmp_path / "root")
    (tmp_path / "link").symlink_to("root")
    box = Sandbox.create(str(tmp_path / "root"))
    for name in ("root", "link"):
        assert run(cat, box=BoxSpec(str(tmp_path / name))).text == "old"
    (tmp_path / "root").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "root")
    for name in ("root", "link"):
        assert run(cat, box=BoxSpec(str(tmp_path / name))).text == "new"
    assert box.run(cat).text == "old"
    box.close()
    assert sum(str(tmp_path) in name for name in supervisor("list")["zygotes"]) == 1


def test_output_beyond_the_limit_is_dropped_and_that_is_said(box: Sandbox) -> None:
    wrote = "head -c 300000 /dev/zero; echo done >&2"
    for start in (run, box.run):
        done = start(wrote, max_output=1000)
        assert (done.exit_code, len(done.stdout), done.stderr) == (0, 1000, b"done\n")
        assert done.truncated
        assert not start(wrote, max_output=300000).truncated
    assert asyncio.run(aio.run(wrote, max_output=10)).truncated
    endless = box.run("yes & sleep 0.2", max_output=5)
    assert (endless.exit_code, endless.stdout) == (0, b"y\ny\ny")


def test_files_of_the_kernel_are_not_copied(box: Sandbox) -> None:
    box.run("ln -s /proc/self/maps /tmp/maps; ln -s /proc/1/oom_score_adj /tmp/adj")
    for name in ("/proc/self/maps", "/proc/1/oom_score_adj", "/tmp/maps", "/tmp/adj"):
        with pytest.raises(SandboxError, match=r"not a regular file|Permission|No such"):
            box.files.read(name)
    with pytest.raises(SandboxError, match=r"not a regular file|Permission"):
        box.files.write("/tmp/adj", "5")


def _copy_program(name: str, root: Path) -> None:
    """Copy a program of this machine, with the libraries that it needs, into a root."""
    program = shutil.which(name) or name
    said = tegu.process.run(["ldd", program]).stdout
    for source in [program, *re.findall(r"(/\S+) \(0x", said)]:
        target = root / source.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def test_a_template_that_is_not_there(path: Path) -> None:
    with pytest.raises(UsageError, match="not a directory"):
        run(["true"], box=BoxSpec("/no/such/root"))
    assert run(["true"]).exit_code == 0


def test_the_async_twin(path: Path) -> None:
    async def work() -> None:
        async with await AsyncSandbox.create() as box:
            done = await asyncio.gather(*(box.run(f"echo {i}; cat", stdin="x") for i in range(8)))
            assert sorted(d.text for d in done) == sorted(f"{i}\nx" for i in range(8))
            await box.files.write("/tmp/f", "data")
            assert await box.files.read("/tmp/f") == b"data"
            assert [e.name for e in await box.files.list("/tmp")] == ["f"]
            await box.files.remove("/tmp/f")
            task = asyncio.create_task(box.run("sleep 1008"))
            seen = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
            while "sleep 1008" not in (await box.run(seen)).text.replace(seen, ""):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while "sleep 1008 " in (await box.run(["sh", "-c", seen])).text:
                await asyncio.sleep(0.01)
            await box.kill()
            with pytest.raises(SandboxError):
                await box.run(["true"])

    asyncio.run(asyncio.wait_for(work(), 60))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(min_size=1, max_size=200)
    | st.dictionaries(
        st.sampled_from(["op", "n", "box", "run", "path", "flags", "signal", "keep"]),
        st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["once", "run", "open"]),
    ).map(lambda d: json.dumps(d).encode())
)
def test_nonsense_from_a_client_is_answered_and_harms_nobody(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(20)
        link.connect(str(path))
        link.send(data)
        answer = json.loads(link.recv(65536))
        assert "error" in answer or answer["ok"] is not None
    if b"shutdown" not in data:
        assert "boxes" in supervisor("list")


def test_errors_have_one_line(path: Path) -> None:
    try:
        run(["x\ny"])
    except TeguError as e:
        assert "cannot start" in e.message


def test_files_move_between_directories(box: Sandbox) -> None:
    """Which Landlock denies unless it is told otherwise: mv would copy, rename(2) fail."""
    program = (
        "import os; os.mkdir('/a'); open('/f', 'w'); "
        "os.rename('/f', '/a/f'); os.rename('/a', '/tmp/a')"
    )
    assert box.run(["python3", "-c", program]).check().exit_code == 0
    assert [e.name for e in box.files.list("/tmp/a")] == ["f"]
