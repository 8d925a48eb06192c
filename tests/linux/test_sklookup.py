"""Steering in a network namespace of the test's own: what is admitted, refused, and left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tegu.linux import sklookup

SOURCE = Path(__file__).parents[2] / "src"
SCRIPT = """
import errno, ipaddress, os, socket, sys
sys.path.insert(0, sys.argv[1])
from tegu.linux import libc, loopback, sklookup
from tegu.linux.route import LOCAL, Routes
libc.unshare(libc.CLONE_NEWNET)
loopback.loopback_up()
outside, six = ipaddress.ip_address("203.0.113.5"), ipaddress.ip_address("2001:db8::5")
with Routes() as routes:
    print(routes.type_of(outside), routes.type_of(six))
    routes.own(ipaddress.ip_address("192.0.0.2"))
    routes.own(ipaddress.ip_address("fd00:7e60::2"))
    print(routes.type_of(outside) == LOCAL, routes.type_of(six) == LOCAL)
    try:
        routes.own(ipaddress.ip_address("192.0.0.2"))
    except OSError as e:
        print(errno.errorcode[e.errno])
four = socket.create_server(("192.0.0.2", 0))
sixth = socket.create_server(("fd00:7e60::2", 0), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("192.0.0.2", 0))
network = os.open("/proc/self/ns/net", os.O_RDONLY)
table, link = sklookup.steer(network, [four.fileno(), udp.fileno(), sixth.fileno(), -1])
def word(what, address, prefix=None, protocol=6, port=0):
    address = ipaddress.ip_address(address)
    bits = address.max_prefixlen if prefix is None else prefix
    packed = address.packed if address.version == 6 else bytes(10) + b"\\xff\\xff" + address.packed
    bits += 96 if address.version == 4 else 0
    if what is None:
        table.remove(protocol, port, packed, bits)
    else:
        table.set(protocol, port, packed, bits, what)
def tcp(host, port):
    try:
        with socket.create_connection((host, port), 60) as c:
            return "to %s port %s" % c.getpeername()[:2]
    except OSError as e:
        return errno.errorcode[e.errno]
word(sklookup.ADMIT, "203.0.113.0", 24)
word(sklookup.DENY, "203.0.113.9")
word(sklookup.ADMIT, "198.51.100.1", port=443)
word(sklookup.ADMIT, "2001:db8::", 32)
word(sklookup.ADMIT, "203.0.113.5", protocol=17)
word(sklookup.ADMIT, "2001:db8::5", protocol=17)
word(sklookup.OWN, "127.0.0.0", 8)
print(tcp("203.0.113.5", 80), tcp("203.0.113.9", 80), tcp("198.51.100.1", 443), sep=", ")
print(tcp("198.51.100.1", 80), tcp("8.8.8.8", 80), tcp("2001:db8::5", 22), tcp("2001:db9::5", 22))
print([four.accept()[0].getsockname() for _ in range(2)], sixth.accept()[0].getsockname()[:2])
own = socket.create_server(("127.0.0.1", 0))
print(tcp("127.0.0.1", own.getsockname()[1]).startswith("to 127"))
for address in ("203.0.113.5", "203.0.113.6", "2001:db8::5"):
    c = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    c.settimeout(60)
    try:
        c.connect((address, 5000)); c.send(b"x"); c.send(b"y")
        print(udp.recv(9))
    except OSError as e:
        print(errno.errorcode[e.errno])
word(None, "203.0.113.0", 24)
word(None, "203.0.113.0", 24)  # it is gone already: no error
print(tcp("203.0.113.5", 80))
word(sklookup.ADMIT, "203.0.113.0", 24)
os.close(link)
print(tcp("203.0.113.5", 80))
"""
SAID = """\
0 0
True True
EEXIST
to 203.0.113.5 port 80, ECONNREFUSED, to 198.51.100.1 port 443
ECONNREFUSED ECONNREFUSED to 2001:db8::5 port 22 ECONNREFUSED
[('203.0.113.5', 80), ('198.51.100.1', 443)] ('2001:db8::5', 22)
True
b'x'
ECONNREFUSED
ECONNREFUSED
ECONNREFUSED
ECONNREFUSED
"""


def test_a_namespace_is_steered() -> None:
    if os.geteuid() != 0:
        pytest.skip("programs that steer are root's to load")
    try:
        sklookup.try_load()
    except OSError as e:
        pytest.skip(f"this machine's kernel or container refuses {e.filename}: {e.strerror}")
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(SOURCE)], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == (SAID, 0), done.stderr
