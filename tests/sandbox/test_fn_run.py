"""Functions, deployed and called: real zygotes, real sandboxes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandbox.conftest import Served, children, descendants, until

from tegu.cli.front import main as front_door
from tegu.errors import SandboxError, UsageError
from tegu.sandbox.fn.client import Answer, Caller, FunctionError, invoke, logs, running
from tegu.sandbox.fn.deployment import deploy, deployed, remove, rollback
from tegu.sandbox.fn.plan import plan
from tegu.sandbox.fn.shelf import read_name
from tegu.sandbox.fn.spec import FunctionSpec
from tegu.store import Store

PATIENT = 60.0
"""Seconds for what ends by itself, on a machine with much to do."""

Call = Callable[..., Answer]


class Bench:
    """A store of a test's own, and a supervisor that tests share."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.store = Store(root / "store")
        self.root = root
        self._number = 0

    def deploy(self, code: str, name: str = "f", **options: Any) -> str:
        """Deploy `main` of some code; returns the version."""
        self._number += 1
        source = self.root / f"{self._number}" / "app.py"
        source.parent.mkdir()
        source.write_text(code)
        spec = FunctionSpec(name, handler="app:main", **{"timeout": PATIENT, **options})
        return deploy(spec, source, path=self.path, store=self.store).current

    def program(self, script: str, name: str = "f", **options: Any) -> None:
        """Deploy a shell script as a program."""
        source = self.root / "script"
        source.write_text(script)
        options = {"timeout": PATIENT, **options}
        spec = FunctionSpec(name, runtime="exec", command=("sh", "script"), **options)
        deploy(spec, source, path=self.path, store=self.store)

    def call(self, event: Any = None, name: str = "f", *, tenant: str = "") -> Answer:
        """Call it once."""
        return invoke(name, event, tenant=tenant, path=self.path, store=self.store)

    def result(self, event: Any = None, name: str = "f", *, tenant: str = "") -> Any:
        """Call it and return its result."""
        return self.call(event, name, tenant=tenant).result()

    def about(self, name: str = "f") -> dict[str, Any]:
        """Return what the supervisor knows of it."""
        return running(self.path, self.store)[name]

    def text(self, name: str = "f") -> str:
        """Return what it printed."""
        entries = logs(name, path=self.path, store=self.store)
        return "".join(entry["text"] for entry in entries)


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Served]:
    one = Served(warm=2)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def in_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    served = Served(warm=0, compiled=False)
    yield Bench(served.path, tmp_path_factory.mktemp("python"))
    served.stop()


@pytest.fixture
def bench(supervisor: Served, tmp_path: Path) -> Iterator[Bench]:
    one = Bench(supervisor.path, tmp_path)
    yield one
    for each in deployed(one.store):
        remove(each.name, path=one.path, store=one.store)


def test_a_function_is_called(bench: Bench) -> None:
    bench.deploy("def main(event):\n    print('heard', event)\n    return {'n': event['n'] + 1}\n")
    answer = bench.call({"n": 41})
    assert answer.result() == {"n": 42}
    assert answer.outcome == "ok"
    assert answer.account["wall"] > 0
    assert bench.text() == "heard {'n': 41}\n"


def test_bytes_and_much_of_it(bench: Bench) -> None:
    bench.deploy("def main(event):\n    return event * 2 if len(event) < 10 else event\n")
    assert bench.result(b"\x00\xff") == b"\x00\xff\x00\xff"
    large = os.urandom(1_000_000)
    assert bench.result(large) == large
    text = "ä" * 100_000
    assert bench.result(text) == text


def test_each_invocation_is_in_a_fresh_sandbox(bench: Bench) -> None:
    _is_fresh(bench)


def test_it_is_so_without_what_is_compiled(in_python: Bench) -> None:
    _is_fresh(in_python)
    in_python.deploy(RANDOM, load="early")
    found = [in_python.result() for _ in range(3)]
    for key in found[0]:
        assert len({one[key] for one in found}) == 3, key
    in_python.deploy("import os\ndef main(e):\n    os.abort()\n")
    # As process 1 of its namespace it does not get its own SIGABRT; libc then crashes it.
    assert in_python.call().outcome == "crashed"


def _is_fresh(bench: Bench) -> None:
    bench.deploy(
        "import os\n"
        "seen = []\n"
        "def main(event):\n"
        "    seen.append(event)\n"
        "    before = os.listdir('/tmp') + os.listdir('/dev/shm')\n"
        "    open('/tmp/mine', 'w').write('x')\n"
        "    status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "    return {'before': before, 'seen': seen, 'pid': os.getpid(),\n"
        "            'net': os.stat('/proc/self/ns/net').st_ino,\n"
        "            'pids': [p for p in os.listdir('/proc') if p.isdigit()],\n"
        "            'caps': status['CapEff'].strip(), 'user': os.getuid(),\n"
        "            'seccomp': status['Seccomp'].strip(), 'privs': status['NoNewPrivs'].strip(),\n"
        "            'fds': sorted(map(int, os.listdir('/proc/self/fd')))[:4],\n"
        "            'interfaces': [l.split(':')[0].strip() for l in open('/proc/net/dev')][2:]}\n"
    )
    first, second = bench.result(1), bench.result(2)
    assert (first["seen"], second["seen"]) == ([1], [2])
    assert first["before"] == second["before"] == []
    assert first["net"] != os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
    for one in (first, second):
        assert one["pid"] == 1
        assert one["pids"] == ["1"]
        assert int(one["caps"], 16) == 0
        assert one["user"] >= 1000
        assert (one["seccomp"], one["privs"]) == ("2", "1")
        assert one["fds"] == [0, 1, 2, 3]
        assert one["interfaces"] == ["lo"]


FAILING = {
    "raised": ("def main(e):\n    raise ValueError('no ' + e)\n", "ValueError: no e"),
    "exited": ("import os\ndef main(e):\n    os._exit(7)\n", "ended with 7"),
    "exited-sys": ("import sys\ndef main(e):\n    sys.exit('bye')\n", "bye"),
    "crashed-abort": ("import os\ndef main(e):\n    os.abort()\n", "killed by SIG"),
    "crashed": (
        "import os, signal\ndef main(e):\n    import ctypes\n    ctypes.string_at(0)\n",
        "SIGSEGV",
    ),
    "not_serialisable": ("def main(e):\n    return {1, 2}\n", "TypeError"),
    "not_serialisable-nan": ("def main(e):\n    return float('nan')\n", "ValueError"),
    "not_serialisable-loop": ("def main(e):\n    a = []\n    a.append(a)\n    return a\n", "Circ"),
    "result_too_large": ("def main(e):\n    return 'x' * 7_000_000\n", "max_result"),
    "start_failed": ("raise RuntimeError('not today')\ndef main(e): pass\n", "not today"),
    "exited-fds": (
        "import os\ndef main(e):\n    os.closerange(0, 99)\n    return 1\n",
        "exit|kill",
    ),
    "crashed-memory": ("def main(e):\n    return 'x' * 2**62\n", "MemoryError"),
}


@pytest.mark.parametrize("case", sorted(set(FAILING) - {"start_failed"}))
def test_each_failure_has_a_name(bench: Bench, case: str) -> None:
    code, words = FAILING[case]
    bench.deploy(code)
    with pytest.raises(FunctionError) as caught:
        bench.result("e")
    if case == "crashed-memory":
        assert caught.value.kind == "raised"
    elif case == "exited-fds":
        assert caught.value.kind in ("exited", "crashed")
        return
    else:
        assert caught.value.kind == case.partition("-")[0]
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    if case == "raised":
        assert 'File "/fn/app.py", line 2, in main' in caught.value.traceback
        assert "tegu/sandbox" not in caught.value.traceback
        assert "ValueError: no e" in bench.text()


def test_a_function_that_hangs_is_killed(bench: Bench) -> None:
    bench.deploy("import time\ndef main(e):\n    time.sleep(3600)\n", timeout=0.5)
    answer = bench.call()
    assert answer.outcome == "timed_out"
    assert "0.5 s" in answer.data.decode()
    assert until(lambda: bench.about()["running"] == 0)


def test_what_it_forked_dies_with_it(bench: Bench, supervisor: Served) -> None:
    mark = f"{os.getpid()}.{time.monotonic_ns()}"
    bench.deploy(
        "import subprocess\n"
        "def main(mark):\n"
        "    subprocess.Popen(['sleep', '4' + mark], start_new_session=True)\n"
        "    return 'left it'\n"
    )
    assert bench.result(mark) == "left it"

    def there() -> bool:
        wanted = b"sleep\0" + f"4{mark}".encode() + b"\0"
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    found.append((entry / "cmdline").read_bytes())
                except OSError:
                    continue
        return wanted in found

    assert until(lambda: not there())


def test_a_fork_bomb_meets_its_limit(bench: Bench) -> None:
    bench.deploy(
        "import os, time\n"
        "def main(e):\n"
        "    n = 0\n"
        "    while True:\n"
        "        try:\n"
        "            if os.fork() == 0:\n"
        "                time.sleep(3600)\n"
        "        except OSError as e:\n"
        "            return [n, e.strerror]\n"
        "        n += 1\n",
        pids=10,
    )
    assert bench.result() == [9, "Resource temporarily unavailable"]
    assert bench.result() == [9, "Resource temporarily unavailable"]


def test_a_flood_of_output_is_cut(bench: Bench) -> None:
    bench.deploy(
        "import sys\n"
        "def main(megabytes):\n"
        "    for _ in range(megabytes):\n"
        "        sys.stdout.write('x' * 2**20)\n"
        "    return 'done'\n"
    )
    assert bench.result(200) == "done"
    (entry,) = logs("f", path=bench.path, store=bench.store)
    assert len(entry["text"]) == 65536
    assert entry["truncated"]


def test_disk_and_descriptors_have_limits(bench: Bench) -> None:
    bench.deploy(
        "import os\n"
        "def main(e):\n"
        "    found = []\n"
        "    try:\n"
        "        open('/tmp/big', 'wb').write(b'x' * 2**21)\n"
        "    except OSError as e:\n"
        "        found.append(e.strerror)\n"
        "    try:\n"
        "        open('/fn/app.py', 'a')\n"
        "    except OSError as e:\n"
        "        found.append(e.strerror)\n"
        "    try:\n"
        "        while True: os.dup(1)\n"
        "    except OSError as e:\n"
        "        found.append(e.strerror)\n"
        "    return found\n",
        disk=2**20,
        files=128,
    )
    assert bench.result() == [
        "No space left on device",
        "Permission denied",
        "Too many open files",
    ]


RANDOM = """
import random, ssl, uuid, tempfile, os, secrets, multiprocessing.process
random.random(); ssl.RAND_bytes(8); uuid.uuid1(); next(tempfile._get_candidate_names())
def main(event):
    return {
        "random": random.getrandbits(64),
        "ssl": ssl.RAND_bytes(8).hex(),
        "uuid1": str(uuid.uuid1()),
        "node": uuid.getnode(),
        "uuid4": str(uuid.uuid4()),
        "temporary": next(tempfile._get_candidate_names()),
        "urandom": os.urandom(8).hex(),
        "secret": secrets.token_hex(8),
        "authkey": bytes(multiprocessing.process.current_process().authkey).hex(),
    }
"""


@pytest.mark.parametrize("load", ["late", "early"])
def test_forks_share_no_randomness(bench: Bench, load: str) -> None:
    bench.deploy(RANDOM, load=load)
    found = [bench.result() for _ in range(4)]
    for key in found[0]:
        values = [one[key] for one in found]
        assert len(set(values)) == len(values), f"{key}: {values}"


def test_code_that_is_loaded_early_runs_once(bench: Bench) -> None:
    code = "import time\nwhen = time.monotonic_ns()\ndef main(e):\n    return when\n"
    bench.deploy(code, load="early")
    assert bench.result() == bench.result()
    bench.deploy(code, load="late")
    assert bench.result() != bench.result()


def test_early_code_cannot_harm_its_host(bench: Bench) -> None:
    code = (
        "import ctypes, os, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "found = {}\n"
        "def attempt(name, result):\n"
        "    found[name] = [result, ctypes.get_errno()]\n"
        "attempt('user namespace', libc.unshare(0x10000000))\n"
        "attempt('ptrace', libc.ptrace(16, 1, 0, 0))\n"
        "attempt('keyctl', libc.syscall(250, 0, -3, 0))\n"
        "attempt('module', libc.syscall(313, 3, b'', 0))\n"
        "attempt('disk', libc.mount(b'/dev/vda', b'/tmp', b'ext4', 0, None))\n"
        "attempt('uncover', libc.umount2(b'/usr', 2))\n"
        "attempt('uncover proc', libc.umount2(b'/proc', 2))\n"
        "attempt('remount', libc.mount(b'', b'/usr', b'', 32 | 4096, None))\n"
        "attempt('mknod', libc.mknod(b'/tmp/sda', 0o060600, 0x800))\n"
        "attempt('reboot', libc.reboot(0))\n"
        "attempt('raw socket', libc.socket(2, 3, 1))\n"
        "attempt('nftables', libc.socket(16, 3, 12))\n"
        "attempt('setns user', libc.setns(os.open('/proc/self/ns/user', 0), 0x10000000))\n"
        "attempt('write', libc.open(b'/usr/bin/owned', 0o102))\n"
        "found['pids'] = sorted(int(p) for p in os.listdir('/proc') if p.isdigit())\n"
        "found['store'] = os.path.exists('/root/.cache') or os.path.exists('/work')\n"
        "os.kill(1, 9)\n"
        "def main(e):\n"
        "    return found\n"
    )
    bench.deploy(code, load="early")
    found = bench.result()
    assert found.pop("pids") == [1, 2]
    assert found.pop("store") is False
    assert os.path.exists("/usr/bin/owned") is False  # noqa: PTH110
    for name, (result, error) in found.items():
        assert result == -1, f"{name} was allowed"
        assert error, name


def test_nothing_outlives_an_invocation(bench: Bench) -> None:
    bench.deploy(
        "import ctypes, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def main(e):\n"
        "    made = [libc.shmget(77, 4096, 0o1666), libc.msgget(77, 0o1666),\n"
        "            libc.semget(77, 1, 0o1666), libc.mq_open(b'/mine', 0o102, 0o600, None)]\n"
        "    return made, errno.errorcode[ctypes.get_errno()]\n"
    )
    assert bench.result() == [[-1, -1, -1, -1], "ENOSYS"]


JAVA = """
import java.util.*;
import java.util.regex.*;
import java.util.stream.*;

public class Main {
    public static void main(String[] words) throws Exception {
        String event = new Scanner(System.in).useDelimiter("\\\\A").next();
        String out = Stream.of(event.split("")).sorted(Comparator.reverseOrder())
            .collect(Collectors.joining());
        System.err.println(Pattern.compile("a+").matcher(event).find());
        System.out.print(java.lang.management.ManagementFactory.getRuntimeMXBean()
            .getInputArguments().stream().map(a -> '"' + a + '"')
            .collect(Collectors.joining(",", "[\\"" + out.trim() + "\\",", "]")));
    }
}
"""


@pytest.mark.slow
def test_java_starts_from_an_archive_of_its_classes(bench: Bench, tmp_path: Path) -> None:
    if shutil.which("javac") is None:
        pytest.skip("there is no Java compiler here")
    source = tmp_path / "java"
    source.mkdir()
    (tmp_path / "Main.java").write_text(JAVA)
    subprocess.run(["javac", "-d", str(source), str(tmp_path / "Main.java")], check=True)
    jar = ["jar", "--create", "--file", "app.jar", "--main-class", "Main", "-C", ".", "Main.class"]
    subprocess.run(jar, check=True, cwd=source)
    options: dict[str, Any] = {"timeout": PATIENT, "disk": 2**28, "pids": 200}
    command = ("java", "-Xshare:on", "-Xlog:class+load:stderr", "-jar", "app.jar")
    spec = FunctionSpec("j", runtime="java", command=command, train="123", **options)
    deploy(spec, source, path=bench.path, store=bench.store)
    answer = bench.call(132, "j")
    text, *arguments = answer.result()
    assert text == "321"
    assert "-XX:SharedArchiveFile=/fn/.tegu-classes.jsa" in arguments
    # Its own class came out of the archive: with -Xshare:on there is no other way to start.
    assert "Main source: shared objects file (top)" in bench.text("j")
    assert [d.name for d in deployed(bench.store)] == ["j"]
    bad = FunctionSpec("k", runtime="java", command=("java", "-jar", "none.jar"), **options)
    with pytest.raises(SandboxError, match=r"Unable to access jarfile none\.jar"):
        deploy(bad, source, path=bench.path, store=bench.store)
    with pytest.raises(UsageError, match="is not java"):
        wrong = FunctionSpec("k", runtime="java", command=("sh",), **options)
        deploy(wrong, source, path=bench.path, store=bench.store)


def test_an_invocation_cannot_undo_its_sandbox(bench: Bench) -> None:
    bench.deploy(
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def main(e):\n"
        "    return {\n"
        "        'mount': libc.mount(b'x', b'/tmp', b'tmpfs', 0, None),\n"
        "        'unmount': libc.umount2(b'/proc', 2),\n"
        "        'unshare mounts': libc.unshare(0x20000),\n"
        "        'unshare network': libc.unshare(0x40000000),\n"
        "        'unshare users': libc.unshare(0x10000000),\n"
        "        'join': libc.setns(os.open('/proc/self/ns/net', 0), 0),\n"
        "        'be root': libc.setresuid(0, 0, 0),\n"
        "        'be its neighbour': libc.setresuid(2500, 2500, 2500),\n"
        "        'ptrace': libc.ptrace(16, 1, 0, 0),\n"
        "        'io_uring': libc.syscall(425, 8, 0),\n"
        "        'bpf': libc.syscall(321, 0, 0, 0),\n"
        "        'raw socket': libc.socket(17, 3, 0),\n"
        "        'interpreter': libc.open(b'/proc/self/exe', 1),\n"
        "        'device': libc.mknod(b'/tmp/sda', 0o060600, 0x800),\n"
        "    }\n"
    )
    assert {name for name, done in bench.result().items() if done != -1} == set()


def test_early_code_that_starts_threads_is_refused(bench: Bench) -> None:
    code = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
        "def main(e): pass\n"
    )
    with pytest.raises(SandboxError, match="starts 1 threads"):
        bench.deploy(code, load="early")


def test_the_version_before_answers_until_the_new_one_is_ready(bench: Bench) -> None:
    first = bench.deploy("def main(e):\n    return 1\n")
    with pytest.raises(SandboxError, match="not today"):
        bench.deploy(FAILING["start_failed"][0])
    with pytest.raises(SandboxError, match="SyntaxError"):
        bench.deploy("def main(e:\n")
    assert bench.result() == 1
    second = bench.deploy("def main(e):\n    return 2\n")
    assert bench.result() == 2
    assert rollback("f", path=bench.path, store=bench.store).current == first
    assert bench.result() == 1
    assert rollback("f", second[:8], path=bench.path, store=bench.store).current == second
    assert bench.call().version == second
    with pytest.raises(SandboxError, match="is no version"):
        rollback("f", "ffff", path=bench.path, store=bench.store)
    assert [v for v, _ in read_name(bench.store.root, "f").versions] == [first, second]


def test_what_runs_of_the_version_before_ends_in_its_own_time(bench: Bench) -> None:
    bench.deploy("import time\ndef main(e):\n    time.sleep(2)\n    return 1\n")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(bench.result()))
    thread.start()
    assert until(lambda: bench.about()["running"] == 1)
    bench.deploy("def main(e):\n    return 2\n")
    assert bench.result() == 2
    thread.join()
    assert answers == [1]


def test_a_queue_that_is_full_says_when_to_come_again(bench: Bench) -> None:
    bench.deploy(
        "import time\ndef main(e):\n    time.sleep(e)\n    return e\n", concurrency=1, queue=1
    )
    with Caller(bench.path, bench.store.root) as one, Caller(bench.path, bench.store.root) as two:
        one.send("f", b"600", "json")
        assert until(lambda: bench.about()["running"] == 1)
        two.send("f", b"0", "json")
        assert until(lambda: bench.about()["waiting"] == 1)
        answer = bench.call(0)
        assert answer.outcome == "queue_full"
        assert answer.retry_after is not None
        assert answer.retry_after >= 1
        one.close()  # nobody waits for it: it is killed, and the next has its turn
        assert two.answer().result() == 0
    assert bench.about()["outcomes"] == {"queue_full": 1, "cancelled": 1, "ok": 1}


def test_tenants_have_sandboxes_of_their_own(bench: Bench) -> None:
    bench.deploy(
        "import os\n"
        "n = 0\n"
        "def main(e, context):\n"
        "    global n\n"
        "    n += 1\n"
        "    open(f'/tmp/{context.tenant}{n}', 'w')\n"
        "    return [n, sorted(os.listdir('/tmp'))]\n",
        sandbox="tenant",
        concurrency=2,
    )
    assert bench.result(tenant="a") == [1, ["a1"]]
    assert bench.result(tenant="b") == [1, ["b1"]]
    assert bench.result(tenant="a") == [2, ["a1", "a2"]]
    # A third has to wait until the one that was not used for longest has made room.
    assert bench.result(tenant="c") == [1, ["c1"]]
    assert bench.result(tenant="a") == [3, ["a1", "a2", "a3"]]
    assert bench.result(tenant="b") == [1, ["b1"]]


def test_it_scales_to_nothing_and_back(bench: Bench) -> None:
    bench.deploy("def main(e):\n    return e\n", idle=1.0)
    assert bench.result(1) == 1
    zygote = bench.about()["zygote"]
    assert zygote
    assert until(lambda: not bench.about()["warm"])
    answer = bench.call(2)
    assert answer.result() == 2
    assert answer.account["cold"]
    assert bench.about()["zygote_starts"] == 2


def test_a_zygote_that_dies_takes_its_invocations_only(fresh: Served, tmp_path: Path) -> None:
    bench = Bench(fresh.path, tmp_path)
    bench.deploy("import time\ndef main(e):\n    time.sleep(e)\n    return e\n")
    with Caller(bench.path, bench.store.root) as caller:
        caller.send("f", b"600", "json")
        assert until(lambda: bench.about()["running"] == 1)
        holder = next(p for p in children(fresh.supervisor) if _is_function(p))
        os.kill(holder, signal.SIGKILL)
        answer = caller.answer()
        assert answer.outcome == "crashed"
        assert caller.call("f", 0).result() == 0
    assert bench.about()["zygote_starts"] == 2


def _is_function(pid: int) -> bool:
    return b"tegu.sandbox.fn.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_nothing_is_left_when_the_supervisor_is_killed(fresh: Served, tmp_path: Path) -> None:
    bench = Bench(fresh.path, tmp_path)
    bench.deploy("import time\ndef main(e):\n    time.sleep(e)\n")
    with Caller(bench.path, bench.store.root) as caller:
        caller.send("f", b"600", "json")
        assert until(lambda: bench.about()["running"] == 1)
        there = descendants(fresh.keeper.pid)
        os.kill(fresh.supervisor, signal.SIGKILL)
        with pytest.raises(SandboxError, match="supervisor has ended"):
            caller.answer()
    assert until(lambda: not any(Path(f"/proc/{p}").exists() for p in there))


def test_a_memory_limit_holds(bench: Bench) -> None:
    from tegu.sandbox.client import supervisor as ask

    found = {f["name"]: f for f in ask("doctor", path=bench.path)}
    if not found["memory"]["available"]:
        pytest.skip(f"no limit on memory here: {found['memory']['reason']}")
    bench.deploy("def main(e):\n    return len(bytearray(e))\n", memory=32 * 2**20)
    assert bench.result(2**20) == 2**20
    answer = bench.call(256 * 2**20)
    assert answer.outcome == "out_of_memory"
    assert answer.account["memory_peak"] > 2**20


def test_a_program_is_a_function(bench: Bench) -> None:
    bench.program('read event; echo log >&2; echo "{\\"got\\": $event, \\"in\\": \\"$PWD\\"}"')
    answer = bench.call(5)
    assert answer.result() == {"got": 5, "in": "/fn"}
    assert answer.account["max_rss"] > 0
    assert bench.text() == "log\n"


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("exit 3", "exited"),
        ("kill -9 $$", "crashed"),
        ("sleep 3600", "timed_out"),
        ("cat /dev/zero", "result_too_large"),
    ],
)
def test_how_a_program_can_fail(bench: Bench, script: str, outcome: str) -> None:
    bench.program(script, timeout=1.0 if outcome == "timed_out" else PATIENT)
    assert bench.call().outcome == outcome


def test_a_program_may_answer_bytes(bench: Bench) -> None:
    bench.program("printf '\\377\\0'")
    assert bench.result() == b"\xff\0"


def test_the_decorator_is_found_and_works_inside(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "deco.py"
    source.write_text(
        "from tegu.sandbox.fn import function\n"
        "@function(timeout=50, name='hello', memory=None)\n"
        "def greet(event):\n"
        "    return helper(event)\n"
        "def helper(event):\n"
        "    return 'hello ' + event\n"
        "@function\n"
        "def other(event):\n"
        "    return greet('you')\n"
    )
    specs = plan(source, None, None, [], {})
    assert [(s.name, s.handler, s.timeout) for s in specs] == [
        ("hello", "deco:greet", 50),
        ("other", "deco:other", 30.0),
    ]
    for spec in specs:
        deploy(spec, source, path=bench.path, store=bench.store)
    assert bench.result("world", "hello") == "hello world"
    assert bench.result(None, "other") == "hello you"


def test_a_package_with_modules_and_data(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "pkg").mkdir(parents=True)
    (source / "pkg" / "__init__.py").write_text("from .inner import value\n")
    (source / "pkg" / "inner.py").write_text("value = 7\n")
    (source / "data.txt").write_text("data")
    (source / "pkg" / "handlers.py").write_text(
        "import pkg\n"
        "def main(e):\n"
        "    return [pkg.value, open('data.txt').read(), pkg.__path__ and True]\n"
    )
    spec = FunctionSpec("tree", handler="pkg.handlers:main", timeout=PATIENT)
    deploy(spec, source, path=bench.path, store=bench.store)
    assert bench.result(name="tree") == [7, "data", True]


def test_the_front_door(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEGU_SANDBOX_SOCKET", str(bench.path))
    monkeypatch.setenv("TEGU_STORE", str(bench.store.root))
    source = bench.root / "door.py"

    def tegu(*words: str) -> tuple[int, str]:
        code = front_door(["fn", *words])
        return code, capsys.readouterr().out

    for n in (1, 2):
        source.write_text(
            "from tegu.sandbox.fn import function\n"
            "@function(timeout=60)\n"
            f"def door(e):\n    print('knock')\n    return [{n}, e]\n"
        )
        assert tegu("deploy", str(source), "--max-result", "1K")[0] == 0
    assert tegu("invoke", "door", '{"a": 1}') == (0, '[2, {"a": 1}]\n')
    code, out = tegu("invoke", "door", json.dumps("x" * 2000), "--json")
    assert (code, json.loads(out)["outcome"]) == (20, "result_too_large")
    assert tegu("invoke", "door", "{") == (2, "")
    assert "knock" in tegu("logs", "door")[1]
    (one,) = json.loads(tegu("ls", "--json")[1])
    assert (one["name"], one["outcomes"]) == ("door", {"ok": 1, "result_too_large": 1})
    assert len(tegu("ls", "door")[1].splitlines()) == 2
    assert json.loads(tegu("rollback", "door", "--json")[1])["name"] == "door"
    assert tegu("invoke", "door", "0") == (0, "[1, 0]\n")
    assert tegu("rm", "door")[0] == 0
    assert tegu("ls") == (0, "")
    assert tegu("invoke", "door")[0] == 20
    assert tegu("deploy", str(bench.root / "nothing.py"))[0] == 2


def test_functions_that_are_not_there(bench: Bench) -> None:
    with pytest.raises(SandboxError, match="there is no function nothing"):
        bench.result(name="nothing")
    with pytest.raises(UsageError, match="is not the name of a function"):
        bench.result(name="../../etc/passwd")
    bench.deploy("def main(e):\n    return e\n", name="gone")
    remove("gone", path=bench.path, store=bench.store)
    with pytest.raises(SandboxError, match="there is no function gone"):
        bench.result(name="gone")
    with pytest.raises(UsageError, match=r"has no app\.py"):
        source = bench.root / "x.py"
        source.write_text("")
        deploy(FunctionSpec("x", handler="app:main"), source, path=bench.path, store=bench.store)


def test_a_damaged_version_is_refused(bench: Bench) -> None:
    version = bench.deploy("def main(e):\n    return e\n", idle=1.0)
    path = bench.store.root / "functions" / version / "function.json"
    path.write_text(json.dumps({"spec": {"name": "f", "timeout": "soon"}, "imports": []}))
    target = bench.store.root / "function-names" / "f.json"
    os.utime(target)  # it is looked at again
    with Served_again(bench) as other, pytest.raises(SandboxError, match="is damaged"):
        invoke("f", 1, path=other.path, store=bench.store)


class Served_again:  # noqa: N801 - reads as a sentence
    """Another supervisor, which has not seen the function yet."""

    def __init__(self, bench: Bench) -> None:
        self._one = Served(warm=0)

    def __enter__(self) -> Served:
        return self._one

    def __exit__(self, *_: object) -> None:
        self._one.stop()
