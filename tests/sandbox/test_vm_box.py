"""Real guests under emulation: programs, files, limits, snapshots, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.conftest import Served, descendants, until
from tests.sandbox.vm_kit import guest_kernel, skip_unless_possible, small_tree

from tegu.errors import SandboxError, TeguError, UnsupportedError, UsageError
from tegu.sandbox.client import Sandbox, box_spec, run, supervisor
from tegu.sandbox.vm.trial import try_boot

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("microvm")]
SHAPE: dict[str, Any] = {"kind": "microvm-tcg", "memory": "128M", "disk": "32M"}


class Vms:
    """A supervisor with a state directory of its own, and a tree."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.tree = str(small_tree(directory / "tree"))
        os.environ["TEGU_GUEST_KERNEL"] = str(guest_kernel(directory / "kernel"))
        skip_unless_possible()
        os.environ["TEGU_SANDBOX_STATE"] = str(self.state)
        self.served = Served(warm=0)

    def box(self, **more: Any) -> Sandbox:
        return Sandbox.create(self.tree, path=self.served.path, **SHAPE, **more)


@pytest.fixture(scope="module")
def vms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vms]:
    before = dict(os.environ)
    try:
        one = Vms(tmp_path_factory.mktemp("vm"))
        yield one
        one.served.stop()
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def box(vms: Vms) -> Iterator[Sandbox]:
    with vms.box() as one:
        yield one


def _is_emulator(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "Name:\tqemu-system" in status and "State:\tZ" not in status


def emulators(vms: Vms) -> set[int]:
    """Return the emulators that run, and no more those that the supervisor has yet to wait for."""
    return {pid for pid in descendants(vms.served.keeper.pid) if _is_emulator(pid)}


def test_a_program_of_its_own_kernel(vms: Vms) -> None:
    before = emulators(vms)
    done = run(
        "cat /proc/version; cat; echo no >&2; exit 7",
        box=box_spec(vms.tree, **SHAPE),
        stdin="through the port\n",
        path=vms.served.path,
    )
    assert done.exit_code == 7
    assert done.stderr == b"no\n"
    assert done.text.endswith("through the port\n")
    assert done.text.split()[2] != os.uname().release
    assert until(lambda: emulators(vms) == before)


def test_exit_codes_signals_and_missing_programs(box: Sandbox) -> None:
    assert box.run(["/bin/false"]).exit_code == 1
    died = box.run("kill -SEGV $$")
    assert (died.exit_code, died.signal) == (128 + signal.SIGSEGV, signal.SIGSEGV)
    with pytest.raises(SandboxError, match="cannot start nonesuch: No such file"):
        box.run(["nonesuch"])
    with pytest.raises(SandboxError, match="cannot start"):
        box.run("true", cwd="/nowhere")


def test_another_user(box: Sandbox) -> None:
    words = "grep -E '^(Uid|Gid|Groups):' /proc/self/status"
    ids = [line.split()[1:] for line in box.run(words, user="7:8,9").text.splitlines()]
    assert ids == [["7"] * 4, ["8"] * 4, ["9"]]


def test_more_output_than_fits_a_window(box: Sandbox) -> None:
    done = box.run("seq 1 100000; seq 1 100000 >&2")
    assert done.stdout == done.stderr == b"".join(b"%d\n" % i for i in range(1, 100001))


def test_much_input(box: Sandbox) -> None:
    data = bytes(range(256)) * 4096
    assert box.run("wc -c", stdin=data).text.strip() == str(len(data))
    assert box.run("true", stdin=data).exit_code == 0  # who reads nothing holds nothing up


def test_a_run_that_nobody_reads_holds_up_no_other(box: Sandbox) -> None:
    deaf = box.start("yes")
    assert box.run("echo heard").text == "heard\n"
    deaf.kill()
    assert deaf.wait().signal == signal.SIGKILL


def test_a_timeout_takes_what_the_program_left(box: Sandbox) -> None:
    done = box.run("(sleep 4321 &) ; sleep 4321", timeout=2)
    assert done.timed_out
    assert "4321" not in box.run("ps").text.replace("grep", "")
    assert box.run("echo lives").text == "lives\n"


def test_files(box: Sandbox) -> None:
    data = os.urandom(300_000)
    box.files.mkdir("/tmp/d")
    box.files.write("/tmp/d/f", data)
    assert box.files.read("/tmp/d/f") == data
    assert [(e.name, e.kind, e.size) for e in box.files.list("/tmp/d")] == [
        ("f", "file", len(data))
    ]
    box.files.remove("/tmp/d/f")
    box.files.remove("/tmp/d")
    with pytest.raises(SandboxError, match="/tmp/d/f: No such file"):
        box.files.read("/tmp/d/f")
    with pytest.raises(SandboxError, match="/nowhere/f: No such file"):
        box.files.write("/nowhere/f", b"")
    with pytest.raises(SandboxError, match="/dev/zero"):
        box.files.read("/dev/zero")


def test_secrets_are_sealed_files(box: Sandbox) -> None:
    done = box.run('cat "$TOKEN"; echo x > "$TOKEN"', secrets={"TOKEN": b"sealed"})
    assert done.stdout == b"sealed"
    assert done.exit_code != 0


def test_memory_is_what_was_asked_for(box: Sandbox) -> None:
    total = int(box.run("grep MemTotal /proc/meminfo").text.split()[1])
    assert total < 128 * 1024
    box.run("dd if=/dev/zero of=/dev/shm/f bs=1M count=40").check()
    done = box.run(["dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"])
    assert done.out_of_memory
    assert done.signal == signal.SIGKILL
    assert box.run("rm /dev/shm/f; echo lives").text == "lives\n"


def test_the_disk_is_as_large_as_was_asked_for(box: Sandbox) -> None:
    done = box.run("dd if=/dev/zero of=/root/f bs=1M count=64")
    assert b"No space left" in done.stderr
    assert 0 < len(box.files.read("/root/f")) < 32 * 2**20
    box.files.remove("/root/f")


def test_pause_stops_the_guest(box: Sandbox) -> None:
    box.pause()
    assert box.info()["state"] == "paused"
    box.resume()
    lag = abs(int(box.run("date +%s").text) - time.time())
    assert lag < 30


IDENTITY = (
    "head -c 16 /dev/urandom | od -An -x; cat /etc/machine-id /proc/sys/kernel/random/boot_id"
)


COUNTING = """
i=0
while :; do
    i=$((i+1)); echo $i > /root/c; mv /root/c /root/count
    sleep 0.1
done
"""


def test_two_restores_are_two_machines(vms: Vms) -> None:
    with vms.box() as one:
        one.files.write("/root/f", b"kept")
        counting = one.start(COUNTING)
        assert until(lambda: bool(one.run("cat /root/count 2>/dev/null").text.strip()))
        one.snapshot("twins")
        assert one.files.read("/root/f") == b"kept"  # it goes on
        one.files.write("/root/f", b"changed")
        seen = [one.run(IDENTITY).text.split("\n")]
        counting.kill()
    counts = []
    for _ in range(2):
        with Sandbox.create(snapshot="twins", path=vms.served.path) as twin:
            assert twin.info()["spec"]["kind"] == "microvm-tcg"
            seen.append(twin.run(IDENTITY).text.split("\n"))
            assert twin.files.read("/root/f") == b"kept"
            counts.append(int(twin.run("cat /root/count").text))
            # What ran when it was saved runs in each.
            twin.run(f"until [ $(cat /root/count) -gt {counts[-1]} ]; do :; done").check()
    for lines in zip(*seen, strict=True):
        assert len(set(lines)) == len(seen) or not any(lines)
    with vms.box() as another:
        assert another.run(IDENTITY).text.split("\n")[0] not in [s[0] for s in seen]


def test_forks_of_forks(vms: Vms) -> None:
    with vms.box() as one:
        one.files.write("/root/f", b"1")
        with one.fork() as two:
            two.files.write("/root/f", b"2")
            with two.fork() as three:
                assert three.files.read("/root/f") == b"2"
        assert one.files.read("/root/f") == b"1"
    assert not [
        s for s in supervisor("snapshots", path=vms.served.path) if s["name"].startswith("fork-")
    ]


@pytest.fixture(scope="module")
def saved(vms: Vms) -> Path:
    with vms.box() as one:
        one.snapshot("good")
        with pytest.raises(SandboxError, match="there is a snapshot good already"):
            one.snapshot("good")
        with pytest.raises(UsageError, match="is no name"):
            one.snapshot("../bad")
    return vms.state / "snapshots" / "good"


def restore(vms: Vms, name: str) -> None:
    Sandbox.create(snapshot=name, path=vms.served.path).close()


@pytest.mark.parametrize("file", ["memory", "state", "disk"])
def test_a_damaged_snapshot_is_refused(vms: Vms, saved: Path, file: str) -> None:
    before = emulators(vms)
    bad = saved.with_name(f"bad-{file}")
    shutil.copytree(saved, bad)
    data = bytearray((bad / file).read_bytes())
    at = next(i for i in range(len(data) // 2, len(data)) if data[i]) if any(data) else 0
    data[at] ^= 1
    (bad / file).write_bytes(data)
    with pytest.raises(SandboxError, match=f"snapshot {bad.name} is damaged: {file} does not"):
        restore(vms, bad.name)
    (bad / file).unlink()
    with pytest.raises(SandboxError, match=f"snapshot {bad.name} is damaged: {file} is missing"):
        restore(vms, bad.name)
    assert emulators(vms) == before


def test_a_snapshot_of_another_version_is_refused(vms: Vms, saved: Path) -> None:
    bad = saved.with_name("foreign")
    shutil.copytree(saved, bad)
    body = json.loads((saved / "manifest.json").read_text())
    (bad / "manifest.json").write_text(json.dumps({**body, "format": 99}))
    with pytest.raises(SandboxError, match="foreign is of format 99; this version reads 1"):
        restore(vms, "foreign")
    (bad / "manifest.json").write_text(json.dumps({**body, "created": 1}))
    with pytest.raises(SandboxError, match="its manifest is damaged"):
        restore(vms, "foreign")
    (bad / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(SandboxError, match="its manifest is damaged"):
        restore(vms, "foreign")
    listed = {s["name"]: s for s in supervisor("snapshots", path=vms.served.path)}
    assert "damaged" in listed["foreign"]["error"]
    with pytest.raises(SandboxError, match="there is no snapshot nonesuch"):
        restore(vms, "nonesuch")
    supervisor("forget", name="foreign", path=vms.served.path)
    with pytest.raises(SandboxError, match="there is no snapshot foreign"):
        supervisor("forget", name="foreign", path=vms.served.path)


def test_a_snapshot_of_another_emulator_is_refused(vms: Vms, saved: Path) -> None:
    from tegu.sandbox.vm import snapshots

    bad = saved.with_name("older")
    shutil.copytree(saved, bad)
    body = json.loads((saved / "manifest.json").read_text())
    body["machine"]["version"] = "1.2.3"
    body["check"] = snapshots._check(body)
    (bad / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(SandboxError, match=r"snapshot older is of qemu 1\.2\.3 tcg; this host has"):
        restore(vms, "older")


def test_a_dead_machine_fails_its_calls_at_once(vms: Vms) -> None:
    before = emulators(vms)
    with vms.box() as one:
        waiting = one.start("sleep 4000")
        (emulator,) = emulators(vms) - before
        os.kill(emulator, signal.SIGKILL)
        with pytest.raises(SandboxError, match="the virtual machine"):
            waiting.wait()
        assert until(lambda: emulators(vms) == before)
        with pytest.raises(SandboxError):
            one.run("true")


def test_a_guest_that_stops_itself_ends_its_box(vms: Vms) -> None:
    with vms.box() as one, pytest.raises(SandboxError, match="the virtual machine"):
        one.run("echo b > /proc/sysrq-trigger; sleep 4000")


def test_what_cannot_be_is_refused(vms: Vms) -> None:
    with pytest.raises(UnsupportedError, match="memory: a microVM needs 96 MiB at least"):
        Sandbox.create(vms.tree, kind="microvm-tcg", memory="32M", path=vms.served.path)
    with pytest.raises(UsageError, match="holds no root file system"):
        Sandbox.create(str(vms.state), kind="microvm-tcg", path=vms.served.path)
    with (
        Sandbox.create(path=vms.served.path) as plain,
        pytest.raises(TeguError, match="a snapshot of a container"),
    ):
        plain.snapshot("nothing")


def test_a_damaged_base_is_made_anew(vms: Vms) -> None:
    with vms.box() as one:
        one.run("true").check()
    bases = [d for d in (vms.state / "bases").iterdir() if not d.name.startswith(".")]
    for base in bases:
        with (base / "state").open("r+b") as f:
            f.write(b"damaged")
    with pytest.raises(SandboxError, match=r"what was kept of this template is unusable: .*state"):
        vms.box()
    with vms.box() as one:
        assert one.run("echo anew").text == "anew\n"


def test_a_client_that_vanishes_takes_its_programs_along(vms: Vms, box: Sandbox) -> None:
    running = box.start("echo first; sleep 4322")
    assert next(running.output()) == ("stdout", b"first\n")
    running._exchange.close()  # as when its process is killed
    assert until(lambda: "sleep 4322" not in box.run("ps").text)


def test_a_killed_supervisor_takes_its_machines_along(vms: Vms) -> None:
    other = Served(warm=0)
    try:
        one = Sandbox.create(vms.tree, path=other.path, **SHAPE)
        keeper = other.keeper.pid
        mine = {p for p in descendants(keeper) if _is_emulator(p)}
        assert len(mine) == 1
        os.kill(other.supervisor, signal.SIGKILL)
        assert until(lambda: not any(_is_emulator(p) for p in mine))
        with pytest.raises(SandboxError, match="has ended"):
            one.run("true")
    finally:
        other.stop()
    assert not list(vms.state.rglob(".new-*"))


def test_emulators_run_as_nobody_else(vms: Vms, box: Sandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give ids away")
    for pid in emulators(vms):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert min(map(int, status["Uid"].split())) >= 0x6FFF8000
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == 0


def test_a_boot_that_takes_too_long_is_told_and_remembered(
    vms: Vms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason, _ = try_boot("microvm-tcg", tmp_path, deadline=0.01)
    assert "a guest did not boot within 0.01 s" in reason
    monkeypatch.setattr("tegu.sandbox.vm.trial._boot", lambda *_: pytest.fail("it was remembered"))
    assert try_boot("microvm-tcg", tmp_path)[0] == reason
    assert not list(tmp_path.glob(".trial-*"))


def test_killing_everything_leaves_nothing(vms: Vms) -> None:
    before = emulators(vms)
    one = vms.box(keep=True)
    pid = one.info()["pid"]
    assert pid
    one.kill()
    one.close()
    assert until(lambda: emulators(vms) == before)
    assert not list(vms.state.rglob(".new-*"))
