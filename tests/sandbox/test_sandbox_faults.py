"""What breaks, and what must not be left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.sandbox.conftest import SOURCE, Served, children, descendants, until

from tegu.errors import SandboxError
from tegu.linux import cgroups
from tegu.sandbox import Sandbox, run
from tegu.sandbox.client import Process, box_spec, supervisor
from tegu.sandbox.launch import connect
from tegu.sandbox.nursery import SPARE_NETWORKS


def groups_of_supervisors() -> set[str]:
    found = set()
    for own in cgroups._hierarchies().values():
        found |= {str(p) for p in own.glob("tegu-*-*")}
    return found


def host_mounts() -> list[str]:
    """Return the host's mounts where zygotes and boxes mount something in their own namespaces.

    Others on this machine may mount what they like elsewhere meanwhile.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = {"/", "/tmp", "/proc", "/dev"}
    own = ("/b/", "/t/", "/ro/")
    return [x for x in lines if x.split()[4] in places or f"{x.split()[4]}/".startswith(own)]


def fill(path: Path) -> list[Process]:
    """Make boxes in which things run; they do as long as what is returned is held."""
    runs = []
    for _ in range(3):
        box = Sandbox.create(path=path, keep=True)
        run = box.start("setsid sleep 1012 & trap '' TERM; echo up; sleep 1013")
        assert next(run.output()) == ("stdout", b"up\n")
        runs.append(run)
    return runs


@pytest.mark.parametrize("victim", ["supervisor", "keeper"])
def test_killed_at_any_moment_nothing_is_left(fresh: Served, victim: str) -> None:
    held = fill(fresh.path)
    processes = descendants(fresh.keeper.pid)
    assert len(processes) > 6 + len(held)
    mounts = host_mounts()
    os.kill(fresh.supervisor if victim == "supervisor" else fresh.keeper.pid, signal.SIGKILL)
    assert until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in processes))
    fresh.keeper.wait(30)
    assert host_mounts() == mounts
    with pytest.raises(SandboxError, match="no supervisor"):
        connect(fresh.path, start=False)
    # A new one takes the place, and clears up what a killed keeper could not.
    again = Served(warm=0)
    try:
        assert run(["true"], path=again.path).exit_code == 0
        mine = {g for g in groups_of_supervisors() if f"tegu-{fresh.keeper.pid}-" in g}
        assert not mine
    finally:
        again.stop()


def test_stopping_leaves_nothing(fresh: Served) -> None:
    mine = {g for g in groups_of_supervisors() if f"tegu-{fresh.keeper.pid}-" in g}
    held = fill(fresh.path)
    run(["true"], path=fresh.path, box=box_spec())
    processes = descendants(fresh.keeper.pid)
    assert len(processes) > len(held)
    supervisor("shutdown", path=fresh.path)
    assert fresh.keeper.wait(30) == 0
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in processes)
    assert not fresh.path.exists()
    assert not groups_of_supervisors() & mine


def test_clients_hear_at_once_that_the_supervisor_died(fresh: Served) -> None:
    box = Sandbox.create(path=fresh.path)
    process = box.start("sleep 1000")
    os.kill(fresh.supervisor, signal.SIGKILL)
    with pytest.raises(SandboxError, match="the supervisor has ended"):
        process.wait()
    with pytest.raises(SandboxError):
        box.run(["true"])
    with pytest.raises(SandboxError, match="the supervisor has ended"):
        box.info()


def test_a_killed_zygote_is_replaced_and_boxes_live_on(fresh: Served) -> None:
    with Sandbox.create(path=fresh.path) as box:
        zygotes = [pid for pid in descendants(fresh.supervisor) if _is_zygote(pid)]
        assert len(zygotes) == 1
        os.kill(zygotes[0], signal.SIGKILL)
        assert until(lambda: _runs(fresh.path))
        assert box.run("echo still here").text == "still here\n"


def test_an_end_is_not_held_up_by_boxes_made_ahead() -> None:
    """Pools were filled again while the supervisor waited for their last box to end."""
    for _ in range(3):
        one = Served(warm=8)
        for _ in range(6):
            assert run("true", path=one.path).exit_code == 0
        one.stop()  # waits half a minute at most


def _is_zygote(pid: int) -> bool:
    """Whether it is a zygote, and not a box of one: those are a pid namespace further down."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False  # it has ended meanwhile
    depth = len(status.split("NSpid:")[1].split("\n")[0].split())
    is_one = b"zygote" in command or command.startswith(b"tegu-box")
    return is_one and depth == len(_own_depth()) + 1


def _own_depth() -> list[str]:
    return Path("/proc/self/status").read_text().split("NSpid:")[1].split("\n")[0].split()


def _runs(path: Path) -> bool:
    try:
        return run(["true"], path=path).exit_code == 0
    except SandboxError:
        return False


def counts(one: Served) -> tuple[int, int, int, int]:
    """Return a supervisor's descriptors, mounts, descendants and groups."""
    pid = one.supervisor
    fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    mounts = len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    groups = sum(f"tegu-{one.keeper.pid}-" in group for group in groups_of_supervisors())
    return fds, mounts, len(descendants(pid)), groups


def settled(one: Served, zygote: int) -> bool:
    """Whether no box is left and the zygote has made all network namespaces that it may hold."""
    networks = [
        fd for fd in Path(f"/proc/{zygote}/fd").iterdir() if str(fd.readlink()).startswith("net:")
    ]
    boxes = supervisor("list", path=one.path)["total"]
    return boxes == 0 and len(networks) == SPARE_NETWORKS and len(descendants(one.supervisor)) == 1


@pytest.mark.slow
def test_a_thousand_starts_without_growth() -> None:
    one = Served(warm=0)
    try:
        for _ in range(20):
            run(["true"], path=one.path)
        zygote = min(children(one.supervisor))
        assert until(lambda: settled(one, zygote))
        before = counts(one)
        memory = _resident(one.supervisor)
        null = os.open(os.devnull, os.O_RDWR)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(str(one.path))
            order = {"op": "once", "box": {}, "run": {"argv": ["true"]}}
            for i in range(0, 1000, 4):
                for n in range(4):
                    socket.send_fds(link, [json.dumps({**order, "n": i + n}).encode()], [null] * 3)
                for _ in range(4):
                    answer = json.loads(link.recv(65536))
                    assert answer["ok"]["code"] == 0
        os.close(null)
        for _ in range(5):
            with Sandbox.create(path=one.path) as box:
                box.run(["true"]).check()
                box.kill()
        assert until(lambda: settled(one, zygote))
        assert until(lambda: counts(one) == before), (before, counts(one))
        assert _resident(one.supervisor) < memory + 8 * 2**20
    finally:
        one.stop()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_second_supervisor_on_the_same_socket_is_refused(served: Served) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); "
        "from tegu.sandbox.keeper import main; main(sys.argv[1:])"
    )
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(served.path), str(writer)],
        pass_fds=[writer],
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(reader)
    os.close(writer)
    assert done.returncode == 20
    assert "serves" in done.stderr
    assert run(["true"], path=served.path).exit_code == 0


def test_a_stale_socket_is_no_obstacle() -> None:
    one = Served(warm=0)
    processes = descendants(one.keeper.pid)
    os.kill(one.keeper.pid, signal.SIGKILL)
    one.keeper.wait()
    assert until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in processes))
    assert until(lambda: _refused(one.path))
    assert one.path.exists()
    try:
        again = connect(one.path)  # starts one
        again.close()
        assert run(["echo", "up"], path=one.path).text == "up\n"
        supervisor("shutdown", path=one.path)
        assert until(lambda: not one.path.exists())
    finally:
        one.stop()


def _refused(path: Path) -> bool:
    try:
        connect(path, start=False).close()
    except SandboxError:
        return True
    return False


def test_a_client_that_does_not_read_is_dropped(served: Served) -> None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.connect(str(served.path))
    link.setblocking(False)
    try:
        for n in range(20_000):
            link.send(b'{"op":"doctor","n":%d}' % n)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass
    assert run(["true"], path=served.path).exit_code == 0
    link.close()


def test_a_box_that_lies_is_killed_and_hurts_nobody(served: Served) -> None:
    """What a hostile first process could say: nothing of it may reach the supervisor's state."""
    import asyncio

    from tegu.sandbox.box import Box
    from tegu.sandbox.spec import BoxSpec

    async def talk(words: list[str]) -> Box:
        box = Box("b0", BoxSpec(), lambda _: None)
        box.state = "live"
        box._take(words, [])
        box.other_end.close()
        return box

    for words in (
        ["exited", "x", "y"],
        ["exited"],
        ["exited", "1", "2", "nan?", "0", "0"],
        ["done"],
        ["done", "99"],
        ["failed", "1"],
        ["error"],
        ["ready"],
        ["\0"],
        ["exited", "1" * 5000, "0", "0", "0", "0"],
    ):
        asyncio.run(talk(words))


def test_the_sweep_leaves_groups_of_the_living_alone(served: Served) -> None:
    living = {g for g in groups_of_supervisors() if f"tegu-{served.keeper.pid}-" in g}
    assert all(_locked(g) for g in living)
    cgroups.sweep()
    assert groups_of_supervisors() >= living


def _locked(group: str) -> bool:
    import fcntl

    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


_AS_A_USER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tegu.linux import libc, mounts
libc.unshare(libc.CLONE_NEWNS)
libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
for name in ("subuid", "subgid"):  # this user gets subordinate ids, in this process's view only
    mounts.bind(Path(sys.argv[2]) / "ids", Path("/etc") / name)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
os.environ["TEGU_SANDBOX_SOCKET"] = sys.argv[2] + "/s/s"
from tegu.sandbox import run
from tegu.sandbox.client import Process, box_spec, supervisor
try:
    print(run("id -u; echo x > /etc/x && cat /etc/x; touch /usr/x || echo ok").text)
    print(run(["cat", "/proc/self/uid_map"]).text)
    print(run(["python3", "-c", "import os\\nfor i in range(99): os.fork() or os._exit(0)"],
              box=box_spec(pids=10)).exit_code)
    from tegu.sandbox.fn import FunctionSpec, deploy, invoke
    from tegu.store import Store
    here = Path(sys.argv[2]) / "s"
    (here / "app.py").write_text("import os\\ndef main(e): return [e, os.getuid(), os.getpid()]")
    store = Store(here / "store")
    for load in ("late", "early"):
        spec = FunctionSpec("f", handler="app:main", load=load)
        deploy(spec, here / "app.py", store=store)
        print(*invoke("f", 7, store=store).result())
    import socket
    from tegu.errors import UnsupportedError
    from tegu.sandbox import Sandbox
    try:
        run("true", box=box_spec(network="full"))
    except UnsupportedError:
        print("unsupported")
    with Sandbox.create(publish=['0:80']) as box:
        served = box.start(["python3", "-c", "import socket\\ns = socket.create_server(('', 80))\\n"
                            "print('up', flush=True)\\ns.accept()[0].sendall(b'inside')"])
        next(served.output())
        with socket.create_connection(("127.0.0.1", box.ports.list()[0]["host_port"])) as link:
            print(link.recv(9).decode())
finally:
    supervisor("shutdown")
"""


def test_a_supervisor_without_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this user is not root: all other tests show it already")
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap (package uidmap) is not installed")
    home = Path(tempfile.mkdtemp(prefix="tegu-t", dir="/tmp"))
    try:
        home.chmod(0o755)
        (home / "s").mkdir()
        os.chown(home / "s", 65534, 65534)
        (home / "ids").write_text("65534:200000:65536\nnobody:200000:65536\n")
        able = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"open({str(SOURCE / 'tegu/errors.py')!r})"],
            user=65534, group=65534, extra_groups=[], capture_output=True, timeout=60, cwd="/",
        )  # fmt: skip
        if able.returncode != 0:
            pytest.skip("other users may not read this checkout or its Python")
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _AS_A_USER, str(SOURCE), str(home)],
            capture_output=True, text=True, timeout=120, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        words = done.stdout.split()
        assert words[:3] == ["0", "x", "ok"]
        assert words[3:9] == ["0", "0", "1", "1", "1", "65535"]
        assert words[9] == "1"  # the eleventh process was refused
        for event, user, pid in (words[10:13], words[13:16]):  # functions, loaded late and early
            assert (event, pid) == ("7", "1")
            assert int(user) >= 1000
        assert words[16:] == ["unsupported", "inside"]  # networks are root's, ports everybody's
    finally:
        shutil.rmtree(home)
