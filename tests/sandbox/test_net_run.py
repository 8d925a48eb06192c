"""Networks of boxes, with a real outside: servers and a DNS server in namespaces of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox import world
from tests.sandbox.conftest import SOURCE, Net, Served, descendants, until
from tests.sandbox.world import ALLOWED, ALLOWED6, OTHER, PRIVATE

from tegu.errors import SandboxError, UnsupportedError, UsageError
from tegu.sandbox.aio import AsyncSandbox
from tegu.sandbox.client import Sandbox, box_spec, run, supervisor

TALK = """
import os, socket
os.environ["RES_OPTIONS"] = "timeout:30"
def talk(host, port=80, text="hi"):
    try:
        with socket.create_connection((host, port), 120) as s:
            s.sendall(text.encode()); s.shutdown(1)
            return s.makefile().read()
    except OSError as e:
        return "error " + str(e)
def ask(host, port=123, text="hi"):
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as s:
        s.settimeout(120)
        try:
            s.connect((host, port)); s.send(text.encode())
            return s.recv(9999).decode()
        except OSError as e:
            return "error " + str(e)
"""


def talk(net: Net, network: str | list[str], host: str, port: int = 80) -> str:
    """Return what a box that may reach `network` hears from a server, or the error."""
    done = net.python(network, f"{TALK}\nprint(talk({host!r}, {port}), end='')")
    assert done.exit_code == 0, done.stderr
    return done.text


def test_a_full_network(net: Net) -> None:
    script = f"""{TALK}
print(talk({ALLOWED!r}), talk({ALLOWED6!r}, 443), talk("allowed.example"), talk({PRIVATE!r}))
print(ask({ALLOWED!r}), ask({ALLOWED6!r}), ask({OTHER!r}, text="x" * 2000)[-5:])
print(socket.gethostbyname_ex("alias.example"))
"""
    done = net.python("full", script)
    assert done.text.split() == [
        *(ALLOWED, "80", "hi", ALLOWED6, "443", "hi", ALLOWED, "80", "hi", PRIVATE, "80", "hi"),
        *(ALLOWED, "hi", ALLOWED6, "hi", "xxxxx"),
        *("('alias.example',", "[],", f"['{ALLOWED}'])"),
    ], done


def test_names_on_the_list(net: Net) -> None:
    assert talk(net, ["allowed.example"], "allowed.example") == f"{ALLOWED} 80\nhi"
    assert talk(net, ["alias.example"], "alias.example", 443) == f"{ALLOWED} 443\nhi"
    assert talk(net, ["*.below.example"], "deep.below.example").endswith("80\nhi")
    assert talk(net, ["big.example"], "big.example").endswith("80\nhi")  # answered over TCP
    assert "not known" in talk(net, ["allowed.example"], "other.example")
    assert "not known" in talk(net, ["allowed.example"], "nothing.example")


def test_ports_of_names_and_addresses(net: Net) -> None:
    network = ["allowed.example:443", f"{OTHER}:80/tcp", f"[{ALLOWED6}]:8443"]
    script = f"""{TALK}
print(talk("allowed.example", 443)); print(talk("allowed.example", 80))
print(talk({OTHER!r}, 80)); print(talk({OTHER!r}, 443)); print(ask({OTHER!r}, 123))
print(talk({ALLOWED6!r}, 8443)); print(talk({ALLOWED6!r}, 80))
"""
    lines = net.python(network, script).text.splitlines()
    refused = "error [Errno 111] Connection refused"
    assert lines == [
        *(f"{ALLOWED} 443", "hi", refused, f"{OTHER} 80", "hi", refused, refused),
        *(f"{ALLOWED6} 8443", "hi", refused),
    ]


def test_much_goes_both_ways_at_once(net: Net) -> None:
    """Ten million bytes on each of eight connections: none is lost, mixed up or held back."""
    script = f"""
import hashlib, os, socket, threading
def one(n):
    data = os.urandom(65536) * 160
    with socket.create_connection(({ALLOWED!r}, 80), 60) as s:
        def write():
            s.sendall(data); s.shutdown(1)
        t = threading.Thread(target=write); t.start()
        f = s.makefile("rb"); f.readline()
        got = f.read(); t.join()
    same[n] = got == data
same = [None] * 8
threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(same)
"""
    assert net.python("full", script).text.strip() == str([True] * 8)


def test_the_end_of_a_server_is_heard(net: Net) -> None:
    """A connection that nobody takes outside is reset, and one that ends there ends here."""
    assert "reset" in talk(net, "full", ALLOWED, 99)
    assert talk(net, "full", ALLOWED) == f"{ALLOWED} 80\nhi"


def test_many_datagrams(net: Net) -> None:
    script = f"""{TALK}
print(sum(ask({ALLOWED!r}, text=str(n)).split()[1] == str(n) for n in range(300)))
"""
    assert net.python("full", script).text.strip() == "300"


def test_a_box_that_lives_on(net: Net) -> None:
    with net.box(["allowed.example"]) as box:
        say = f"{TALK}\nprint(talk('allowed.example'), talk({OTHER!r}), talk('other.example'))"
        for _ in range(2):
            text = box.run(["python3", "-c", say]).text
            assert text.startswith(f"{ALLOWED} 80\nhi error [Errno 111]")
        about = box.info()
        assert about["spec"]["network"] == ["allowed.example"]
        assert about["refused"] == ["name other.example: it is not on the list"]


def test_a_box_keeps_its_own_loopback(net: Net) -> None:
    script = """
import socket
s = socket.create_server(("127.0.0.1", 8080)); c = socket.create_connection(("127.0.0.1", 8080))
print(s.accept()[1] == c.getsockname())
low = socket.create_server(("", 81)); s = socket.create_server(("", 8081))
c = socket.create_connection(("192.0.0.2", 8081))
print(c.getsockname()[0])
s6 = socket.create_server(("::1", 8082), family=socket.AF_INET6)
print(socket.create_connection(("::1", 8082)).getpeername()[0])
"""
    assert net.python("full", script).text.split() == ["True", "192.0.0.2", "::1"]


def test_a_directory_with_a_resolver_of_its_own(net: Net, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("etc", "usr/bin"):
        (root / name).mkdir(parents=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    for tool in ("usr/bin/cat", "usr/bin/true"):
        _copy_program(root, Path("/", tool))
    spec = box_spec(str(root), network="full")
    done = run(["/usr/bin/cat", "/etc/resolv.conf"], box=spec, path=net.served.path)
    assert done.text == "nameserver 127.0.0.1\n", done
    with net.box("full", template=str(root)) as box:
        assert box.files.read("/etc/resolv.conf") == b"nameserver 127.0.0.1\n"
    assert (root / "etc/resolv.conf").is_symlink()


def _copy_program(root: Path, program: Path) -> None:
    """Copy a program with the libraries that it needs."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for name in [str(program), *re.findall(r"(/\S+)", said)]:
        source = Path(name).resolve()
        for target in {root / str(source)[1:], root / name[1:]}:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(source, target)


def test_ports_lead_in(net: Net) -> None:
    """Also where the box has no network."""
    with net.box("none", publish=["0:8000", "0:80"]) as box:
        opened = box.ports.open(8001)
        ports = {p["port"]: p["host_port"] for p in box.ports.list()}
        assert ports[8001] == opened
        assert set(ports) == {80, 8000, 8001}
        server = box.start(["python3", "-c", _SERVER])
        assert next(server.output()) == ("stdout", b"up\n")
        for port in ports.values():
            assert net.host.say("127.0.0.1", port, "x" * 100000) == "x" * 100000 + "\n"
        assert "refused" in net.host.say(world.HOST, opened)  # only there
        box.ports.close(8001)
        assert until(lambda: "refused" in net.host.say("127.0.0.1", opened), 120)
        assert box.ports.open(8002)
        with pytest.raises(SandboxError, match="cannot publish"):
            box.ports.open(8003, host_port=ports[8000])
        for wrong in ({"port": 0}, {"port": 80, "host_port": 70000}, {"port": 80, "address": "x"}):
            with pytest.raises(UsageError, match="publish"):
                box.ports.open(**wrong)  # type: ignore[arg-type]
    assert until(lambda: "refused" in net.host.say("127.0.0.1", ports[8000]), 120)


_SERVER = """
import socket, threading
def serve(s):
    while True:
        c = s.accept()[0]
        while data := c.recv(65536):
            c.sendall(data)
        c.close()
for port in (80, 8000, 8001):
    threading.Thread(target=serve, args=(socket.create_server(("127.0.0.1", port)),)).start()
print("up", flush=True)
"""


def test_the_asyncio_twin(net: Net) -> None:
    async def work() -> None:
        made = AsyncSandbox.create(network=["allowed.example"], path=net.served.path)
        async with await made as box:
            done = await box.run(["python3", "-c", f"{TALK}\nprint(talk('allowed.example'))"])
            assert done.text == f"{ALLOWED} 80\nhi\n"
            port = await box.ports.open(8000)
            assert await box.ports.list() == [
                {"address": "127.0.0.1", "host_port": port, "port": 8000}
            ]
            await box.ports.close(8000)
            assert await box.ports.list() == []

    asyncio.run(work())


def tegu(net: Net, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tegu", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TEGU_SANDBOX_SOCKET": str(net.served.path), "PYTHONPATH": str(SOURCE)},
    )


def test_from_the_command_line(net: Net) -> None:
    fetch = ["python3", "-c", f"{TALK}\nprint(talk('allowed.example'), end='')"]
    done = tegu(net, "run", "--network", "allow:allowed.example:80", "--", *fetch)
    assert done.stdout == f"{ALLOWED} 80\nhi", done
    assert "not known" in tegu(net, "run", "--network=allow:other.example", *fetch).stdout
    done = tegu(net, "run", "--network", "all", "true")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        "tegu: network: 'all' is neither none, full nor allow:NAME,...",
    )
    words = ("--network", "allow:allowed.example,10.0.0.0/8", "--publish", "0:80")
    name = tegu(net, "sandbox", "create", *words).stdout.strip()
    try:
        boxes = json.loads(tegu(net, "sandbox", "list", "--json").stdout)["boxes"]
        about = next(b for b in boxes if b["box"] == name)
        assert about["spec"]["network"] == ["allowed.example", "10.0.0.0/8"]
        assert [p["port"] for p in about["ports"]] == [80]
        assert "allowed.example" in tegu(net, "sandbox", "list").stdout
        done = tegu(net, "sandbox", "exec", name, "--", *fetch)
        assert done.stdout == f"{ALLOWED} 80\nhi"
    finally:
        tegu(net, "sandbox", "kill", name)
    done = tegu(net, "run", "--publish", "x:1", "true")
    assert (done.returncode, "publish" in done.stderr) == (2, True)


@pytest.mark.parametrize("kind", ["process", "microvm-tcg"])
def test_other_classes_say_that_they_cannot(net: Net, kind: str) -> None:
    for more in ({"network": "full"}, {"publish": ["0:80"]}):
        with pytest.raises((UnsupportedError, SandboxError)) as said:
            run(["true"], box=box_spec(kind=kind, **more), path=net.served.path)  # type: ignore[arg-type]
        assert isinstance(said.value, UnsupportedError)


def test_the_doctor_knows(net: Net) -> None:
    found = {f["name"]: f for f in supervisor("doctor", path=net.served.path)}
    assert found["network"]["available"], found["network"]


def test_the_python_launcher_gives_the_same(net: Net) -> None:
    other = Served(warm=2, compiled=False, within=net.host.enter())
    try:
        assert talk(Net(net.host, other), ["allowed.example"], "allowed.example").endswith("hi")
    finally:
        other.stop()


@pytest.mark.usefixtures("net")  # where that is skipped, so is this
def test_no_outside_at_all() -> None:
    """Where there is neither a route nor a resolver, a box hears so at once."""
    host = world.Space([])
    one = Served(warm=0, within=host.enter())
    try:
        lonely = Net(host, one)
        assert "reset" in talk(lonely, "full", "203.0.113.10")
        assert Sandbox.create(network="full", path=one.path).info()["refused"] == []
    finally:
        one.stop()
        host.close()


@pytest.mark.slow
def test_sockets_are_given_back(net: Net) -> None:
    """A hundred boxes with networks leave the relay and the supervisor as they were."""
    relay = relay_of(net.served)

    def open_files() -> tuple[int, int]:
        return _open_files(net.served.supervisor), _open_files(relay)

    talk(net, ["allowed.example"], "allowed.example")
    assert until(lambda: supervisor("list", path=net.served.path)["total"] == 0, 120)
    before = open_files()
    for _ in range(100):
        run(["true"], box=box_spec(network="full"), path=net.served.path).check()
    # Up to two boxes that wait for a program have two descriptors each.
    assert until(lambda: open_files()[0] <= before[0] + 4, 120)
    assert until(lambda: open_files()[1] <= before[1], 120)


def _open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def relay_of(served: Served) -> int:
    """Return the pid of a supervisor's relay."""
    for pid in descendants(served.keeper.pid):
        try:
            if b"net.relay" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue  # it has ended
    raise AssertionError("there is no relay")
