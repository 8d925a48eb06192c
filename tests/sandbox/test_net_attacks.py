"""Attempts to reach what a box's network does not allow: each must fail, and the world is there.

Every test first sees that what is attacked can be reached from where it may be; a server that is
not there would refuse as well.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import signal
import struct
from pathlib import Path

import pytest
from tests.sandbox.conftest import Net, descendants, until
from tests.sandbox.test_net_run import TALK, relay_of
from tests.sandbox.world import (
    ALLOWED,
    DNS,
    HOST,
    HOST6,
    METADATA,
    OTHER,
    OTHER_DNS,
    PRIVATE,
    THIRD,
)

from tegu.errors import SandboxError, UnsupportedError
from tegu.linux import libc
from tegu.sandbox.net.networks import Networks

LISTS: list[object] = ["none", ["allowed.example"], "full"]


def tries(net: Net, network: object, script: str) -> list[str]:
    """Return the lines that a script printed in a box that may reach `network`."""
    done = net.python(network, f"{TALK}\n{script}")  # type: ignore[arg-type]
    assert done.exit_code == 0, done.stderr
    return done.text.splitlines()


def refused(lines: list[str]) -> bool:
    """Whether every line is an error of connecting, resolving or waiting for an answer."""
    return bool(lines) and all(line.startswith("error ") for line in lines)


@pytest.mark.parametrize("network", LISTS, ids=str)
def test_the_hosts_loopback_and_addresses(net: Net, network: object) -> None:
    assert "hello" in net.host.say("127.0.0.1", 8080)
    assert "hello" in net.host.say(HOST, 8081)
    script = f"""
for place in (("127.0.0.1", 8080), ("127.0.0.1", 8081), ("::1", 8081), ("0.0.0.0", 8081),
              ("::ffff:127.0.0.1", 8080), ({HOST!r}, 8081), ({HOST6!r}, 8081),
              ("::ffff:{HOST}", 8081), ("localhost", 8080)):
    print(talk(*place))
"""
    assert refused(tries(net, network, script))


def test_the_hosts_own_address_when_it_is_named(net: Net) -> None:
    assert tries(net, [f"{HOST}:8081"], f"print(talk({HOST!r}, 8081))")[0] == f"{HOST} 8081"
    assert refused(tries(net, [f"{HOST[:-1]}0/31:8081"], f"print(talk({HOST!r}, 8081))"))


@pytest.mark.parametrize("network", LISTS, ids=str)
def test_metadata_and_link_local(net: Net, network: object) -> None:
    assert "hello" in net.host.say(METADATA, 80)
    script = f"""
for host in ({METADATA!r}, "meta.example", "169.254.1.1", "fe80::1", "fd00:ec2::254",
             "::ffff:{METADATA}", "100.100.100.200", "168.63.129.16", "64:ff9b::a9fe:a9fe",
             "2002:a9fe:a9fe::", "mapped.example"):
    print(talk(host)); print(ask(host) if host[0] in "1:2f" else "error")
""".replace('else "error"', 'else "error of none"')
    assert refused(tries(net, network, script))


def test_metadata_when_it_is_named(net: Net) -> None:
    """Then, and only at that port."""
    network = [f"{METADATA}:80"]
    script = f"print(talk({METADATA!r}, 80)); print(talk({METADATA!r}, 443))"
    lines = tries(net, network, script)
    assert lines[0] == f"{METADATA} 80"
    assert refused(lines[2:])


def test_addresses_of_other_names(net: Net) -> None:
    assert "hello" in net.host.say(OTHER, 80)
    script = f"""
print(talk("allowed.example"))
for place in (({OTHER!r}, 80), ({THIRD!r}, 443), ({PRIVATE!r}, 80), ("203.0.113.11", 80),
              ("other.example", 80), ("allowed.example.other.example", 80)):
    print(talk(*place))
print(ask({OTHER!r}))
"""
    lines = tries(net, ["allowed.example"], script)
    assert lines[:2] == [f"{ALLOWED} 80", "hi"]
    assert refused(lines[2:])


def test_an_address_that_was_not_resolved(net: Net) -> None:
    """It belongs to an allowed name, but only the resolver's answer opens it."""
    script = f"print(talk({ALLOWED!r})); print(talk('allowed.example')); print(talk({ALLOWED!r}))"
    lines = tries(net, ["allowed.example"], script)
    assert refused(lines[:1])
    assert lines[1:] == [f"{ALLOWED} 80", "hi", f"{ALLOWED} 80", "hi"]


@pytest.mark.slow
def test_an_address_whose_time_is_over(net: Net) -> None:
    """In the end the kernel refuses it again, as it did before it was resolved."""
    script = f"""
import time
print(talk({THIRD!r}).split()[-1], talk("short.example").split()[-1])
for _ in range(1000):
    said = talk({THIRD!r})
    if "refused" in said: break
    time.sleep(0.3)
print(said)
"""
    lines = tries(net, ["short.example"], script)
    assert lines == ["refused hi", "error [Errno 111] Connection refused"]


def test_what_one_box_resolved_another_has_not(net: Net) -> None:
    with net.box(["allowed.example"]) as one, net.box(["allowed.example"]) as two:
        say = ["python3", "-c", f"{TALK}\nprint(talk('allowed.example'))"]
        assert one.run(say).text == f"{ALLOWED} 80\nhi\n"
        literal = ["python3", "-c", f"{TALK}\nprint(talk({ALLOWED!r}))"]
        assert refused(two.run(literal).text.splitlines())


def test_names_that_lead_inside(net: Net) -> None:
    """DNS rebinding: allowed names with addresses that are not for a name to give."""
    wrong = ["rebind", "loop", "meta", "self", "mapped"]
    names = [f"{name}.example" for name in (*wrong, "both")]
    script = f"""
for name in {names!r}:
    try: print(name, sorted({{a[4][0] for a in socket.getaddrinfo(name, 80)}}))
    except OSError as e: print(name, "error")
print(talk({PRIVATE!r})); print(talk({METADATA!r})); print(talk({HOST!r}, 8081))
"""
    lines = tries(net, names, script)
    assert lines[:6] == [
        *(f"{name}.example error" for name in wrong),
        f"both.example ['{THIRD}']",
    ]
    assert refused(lines[6:])
    # Named as an address too, it may.
    lines = tries(net, ["rebind.example", "10.9.0.0/16"], "print(talk('rebind.example'))")
    assert lines[0] == f"{PRIVATE} 80"


def test_other_dns_servers(net: Net) -> None:
    """Not asked, by datagram or stream; nor are other kinds of records answered."""
    query = """
import struct
def lookup(server, name, kind=1, stream=False):
    q = struct.pack("!6H", 7, 256, 1, 0, 0, 0)
    q += b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + bytes(1)
    q += struct.pack("!HH", kind, 1)
    try:
        with socket.socket(socket.AF_INET, 1 if stream else 2) as s:
            s.settimeout(120); s.connect((server, 53))
            s.sendall((struct.pack("!H", len(q)) if stream else b"") + q)
            a = s.recv(4096)[2 * stream:]
            return f"code {a[3] & 15} records {a[7]}"
    except OSError as e:
        return "error " + str(e)
"""
    script = f"""{query}
for server in ({DNS!r}, {OTHER_DNS!r}, {ALLOWED!r}):
    for stream in (False, True):
        print(lookup(server, "other.example", stream=stream))
"""
    assert refused(tries(net, ["allowed.example"], script))
    script = f"""{query}
for stream in (False, True):
    for name, kind in (("allowed.example", 1), ("allowed.example", 16), ("other.example", 1)):
        print(lookup("127.0.0.1", name, kind, stream))
"""
    answers = ["code 0 records 1", "code 0 records 0", "code 3 records 0"]
    assert tries(net, ["allowed.example"], script) == answers * 2
    # With all allowed, it may ask whom it likes, and for what it likes.
    script = f"{query}\nprint(lookup({OTHER_DNS!r}, 'other.example'))"
    assert tries(net, "full", script) == ["code 0 records 1"]
    script = f"{query}\nprint(lookup('127.0.0.1', 'allowed.example', 16))"
    assert tries(net, "full", script) == ["code 0 records 1"]


def test_what_is_no_query_does_not_hurt_the_resolver(net: Net) -> None:
    script = """
import os
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for n in range(500):
        s.sendto(os.urandom(n), ("127.0.0.1", 53))
for n in range(20):
    with socket.create_connection(("127.0.0.1", 53)) as s:
        s.send(os.urandom(1 + n * 40))
print(talk("allowed.example"))
"""
    assert tries(net, ["allowed.example"], script) == [f"{ALLOWED} 80", "hi"]


@pytest.mark.parametrize("network", LISTS, ids=str)
def test_raw_sockets_and_pings(net: Net, network: object) -> None:
    script = """
for family, kind, protocol in ((2, 3, 1), (2, 3, 255), (10, 3, 58), (17, 3, 3), (2, 2, 1),
                               (2, 1, 132), (16, 3, 12), (40, 1, 0), (38, 5, 0)):
    try:
        socket.socket(family, kind, protocol); print("open", family, kind, protocol)
    except OSError as e: print("error", e)
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
for level, option in ((0, 19), (0, 15), (1, 36), (41, 75)):
    try:
        s.setsockopt(level, option, 1); print("set", level, option)
    except OSError as e: print("error", e)
"""
    lines = tries(net, network, script)
    # IP_FREEBIND (15) is anybody's and gives nothing here: a box may bind any address of its own.
    assert [line for line in lines if not line.startswith("error ")] in ([], ["set 0 15"])


@pytest.mark.parametrize("network", LISTS, ids=str)
def test_nothing_of_the_network_can_be_changed(net: Net, network: object) -> None:
    """No address, route, device or filter, by rtnetlink or ioctl; no map or program of BPF."""
    script = """
import ctypes, fcntl, struct
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket(16, 3, 0); s.settimeout(10)
def ask(kind, flags, body):
    s.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
    return struct.unpack_from("=i", s.recv(65536), 16)[0]
lo = struct.pack("=BBBBI", 2, 32, 0, 0, 1) + struct.pack("=HH", 8, 2) + bytes([203, 0, 113, 20])
print(ask(20, 0x600, lo), ask(21, 0, lo))
route = struct.pack("=8BI", 2, 0, 0, 0, 255, 4, 254, 2, 0) + struct.pack("=HHI", 8, 4, 1)
print(ask(24, 0x600, route), ask(25, 0, route))
link = struct.pack("=BBHiII", 0, 0, 0, 1, 0, 1)
print(ask(16, 0, link), ask(17, 0, link))
u = socket.socket(2, 2)
for request in (0x8914, 0x8916, 0x890B, 0x890C):
    try:
        fcntl.ioctl(u, request, b"lo".ljust(40, bytes(1))); print("done", hex(request))
    except OSError as e: print(-e.errno)
for family in (2, 12, 16):
    try:
        socket.socket(16, 3, family); print("netlink", family)
    except OSError as e: print(-e.errno)
number = 321 if __import__("os").uname().machine == "x86_64" else 280
attributes = ctypes.create_string_buffer(128)
for command in (0, 5, 13, 14, 15, 28, 29, 30, 34):
    r = libc.syscall(number, command, attributes, 128)
    print(-ctypes.get_errno() if r < 0 else f"bpf {command}")
"""
    words = " ".join(tries(net, network, script)).split()
    assert words
    assert all(int(w) in (-1, -38, -93, -97, -99) for w in words), words


def test_the_way_out_is_no_devices_and_no_files(net: Net) -> None:
    """Nothing of the relay, the supervisor or the host is seen in the box."""
    script = """
import os
print(sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else ["lo"])
print([n for _, n in socket.if_nameindex()])
print(sorted(int(f) for f in os.listdir("/proc/self/fd"))[:4])
print(os.listdir("/dev/net") if os.path.isdir("/dev/net") else [])
"""
    assert tries(net, "full", script) == ["['lo']", "['lo']", "[0, 1, 2, 3]", "[]"]


def test_sockets_of_the_relay_do_not_lead_anywhere(net: Net) -> None:
    """The ports that it listens at in the box's network are connected to as themselves."""
    script = """
found = []
for line in open("/proc/net/tcp").read().splitlines()[1:]:
    fields = line.split(); address, port = fields[1].split(":")
    place = socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)
    if fields[3] == "0A": found.append(place)
for place in found:
    if place[1] != 53: print(talk(*place))
print("error", len(found))
"""
    lines = tries(net, "full", script)
    assert refused(lines)
    assert lines[-1] == "error 2"


@pytest.mark.parametrize("network", LISTS, ids=str)
def test_other_boxes(net: Net, network: object) -> None:
    with net.box(network, publish=["0:8000"]) as one, net.box(network) as two:  # type: ignore[arg-type]
        serve = """
import socket
s = socket.socket(); s.bind(("0.0.0.0", 8000)); s.listen()
a = socket.socket(socket.AF_UNIX); a.bind("\\0tegu-box"); a.listen()
print("up", flush=True)
while True:
    with s.accept()[0] as c:
        c.makefile().read(); c.sendall(b"here")
"""
        server = one.start(["python3", "-c", serve])
        assert next(server.output()) == ("stdout", b"up\n")
        port = one.ports.list()[0]["host_port"]
        assert "here" in net.host.say("127.0.0.1", port)
        script = f"""{TALK}
for place in (("192.0.0.2", 8000), ("127.0.0.1", 8000), ("127.0.0.1", {port}), ({HOST!r}, {port}),
              ("fd00:7e60::2", 8000), ({HOST6!r}, {port})):
    print(talk(*place))
for name in ("tegu-box", "tegu-world"):
    a = socket.socket(socket.AF_UNIX)
    try:
        a.connect("\\0" + name); print("connected")
    except OSError as e: print("error", e)
"""
        assert refused(two.run(["python3", "-c", script]).text.splitlines())


def test_more_than_a_box_may_have(net: Net) -> None:
    """Connections and conversations without end: others go on being served."""
    with net.box("full") as greedy:
        script = f"""
import socket, time
held = []
for n in range(900):
    s = socket.socket(); s.setblocking(False)
    s.connect_ex(({ALLOWED!r}, 80)); held.append(s)
for n in range(2000):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.sendto(b"x", ({ALLOWED!r}, 123)); u.close()
print("up", flush=True); time.sleep(600)
"""
        running = greedy.start(["python3", "-c", script])
        assert next(running.output()) == ("stdout", b"up\n")
        assert tries(net, "full", f"print(talk({ALLOWED!r}))") == [f"{ALLOWED} 80", "hi"]


def test_the_relay_has_no_rights(net: Net) -> None:
    net.python("full", "print(1)")
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{relay_of(net.served)}/status").read_text().splitlines()
    )
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(0x6FFF7FFF)}
    assert status["Groups"].strip() == ""
    assert {int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{relay_of(net.served)}/limits").read_text()
    assert re.search(r"^Max processes +0 +0 ", limits, re.MULTILINE)


def test_without_the_relay_boxes_end_and_new_ones_start(fresh_net: Net) -> None:
    with fresh_net.box("full") as box, fresh_net.box("none") as other:
        process = box.start("sleep 1000")
        os.kill(relay_of(fresh_net.served), signal.SIGKILL)
        with pytest.raises(SandboxError, match=r"relay|ended"):
            process.wait()
        with pytest.raises(SandboxError):
            box.run("true")
        assert other.run("echo well").text == "well\n"
    done = fresh_net.python("full", f"{TALK}\nprint(talk({ALLOWED!r}))")
    assert done.text == f"{ALLOWED} 80\nhi\n"


def _steering(pid: int) -> list[tuple[int, int]]:
    """Return (link, program) of all that steers for a process, by the kernel's numbers."""
    found = []
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = entry.read_text().splitlines()
        except OSError:
            continue  # closed meanwhile
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if fields.get("link_type") == "netns":
            found.append((int(fields["link_id"]), int(fields["prog_id"])))
    return found


def _by_number(command: int, number: int) -> int:
    """Return a descriptor of a program (13) or a link (30) of BPF; -1 when there is none."""
    room = ctypes.create_string_buffer(struct.pack("=III", number, 0, 0), 12)
    try:
        return libc.syscall("bpf", command, room, 12)
    except OSError as e:
        if e.errno != errno.ENOENT:
            raise
        return -1


def _space_of(link: int) -> int:
    """Return the network namespace that a link steers; 0 when that is gone."""
    lines = Path(f"/proc/self/fdinfo/{link}").read_text().splitlines()
    return next(int(line.split(":\t")[1]) for line in lines if line.startswith("netns_ino"))


def _gone(command: int, number: int) -> bool:
    fd = _by_number(command, number)
    if fd >= 0:
        os.close(fd)
    return fd < 0


@pytest.mark.parametrize("victim", ["supervisor", "keeper", "stop"])
def test_nothing_is_left(fresh_net: Net, victim: str) -> None:
    """No process, namespace, device, route, link or program, whoever of them is killed."""
    host, served = fresh_net.host, fresh_net.served
    devices = host.run("ip -o link; ip route show table all; ip -6 route show table all")
    boxes = [fresh_net.box("full", keep=True, publish=["0:80"]) for _ in range(3)]
    processes = descendants(served.keeper.pid)
    steering = _steering(served.supervisor)
    assert len(steering) == 3
    # A link does not hold its namespace, and says when that has gone.
    links = [_by_number(30, link) for link, _ in steering]
    assert all(_space_of(link) for link in links)
    port = boxes[0].ports.list()[0]["host_port"]
    if victim == "stop":
        served.keeper.send_signal(signal.SIGTERM)
    else:
        os.kill(served.supervisor if victim == "supervisor" else served.keeper.pid, signal.SIGKILL)
    served.keeper.wait(300)
    assert until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in processes), 120)
    assert until(lambda: not any(_space_of(link) for link in links), 120)
    for link in links:
        os.close(link)
    assert until(lambda: all(_gone(30, link) and _gone(13, prog) for link, prog in steering), 120)
    assert host.run("ip -o link; ip route show table all; ip -6 route show table all") == devices
    assert "refused" in host.say("127.0.0.1", port)


def test_other_ways_to_speak_tcp(net: Net) -> None:
    """Multipath TCP is steered as TCP is; other transports lead nowhere."""
    script = f"""
for kind, protocol, place in ((1, 262, ({OTHER!r}, 80)), (2, 136, ({ALLOWED!r}, 123)),
                              (1, 262, ({HOST!r}, 8081)), (1, 262, ({ALLOWED!r}, 80))):
    try:
        s = socket.socket(2, kind, protocol); s.settimeout(120); s.connect(place); s.send(b"x")
        s.shutdown(1); print(s.recv(100).decode().strip())
    except OSError as e: print("error", e)
"""
    lines = tries(net, [f"{ALLOWED}/32"], script)
    assert refused(lines[:3])
    assert lines[3].startswith(f"{ALLOWED} 80") or refused(lines[3:])  # as the kernel has it or not


def test_a_filter_that_is_gone_lets_nothing_through(fresh_net: Net) -> None:
    """Should the link be closed, the box's network leads nowhere: it has no other way out."""
    with fresh_net.box("full") as box:
        say = ["python3", "-c", f"{TALK}\nprint(talk({ALLOWED!r}))"]
        assert box.run(say).text == f"{ALLOWED} 80\nhi\n"
        ((link, _),) = _steering(fresh_net.served.supervisor)
        fd = _by_number(30, link)
        libc.syscall("bpf", 34, ctypes.create_string_buffer(struct.pack("=I", fd), 4), 4)  # DETACH
        os.close(fd)
        assert refused(box.run(say).text.splitlines())


def test_users_supervisors_say_that_they_cannot() -> None:
    """Not silently less: a list that nobody enforces would be worse than none."""

    async def ask() -> None:
        networks = Networks(privileged=False)
        assert "user's supervisor" in networks.why_not()
        with pytest.raises(UnsupportedError, match="network beyond none"):
            networks.check()

    asyncio.run(ask())
