"""TIME-WAIT: the setting, and a sweep of real sockets in a network namespace of its own."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.cli import main
from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.linux import netlink, sockdiag
from tegu.tune import clear, current, put

_SWEEP = """
import errno, os, socket, sys, time
from tegu.linux import libc
from tegu.linux.loopback import loopback_up
from tegu.linux.sockdiag import TIME_WAIT, tcp_sockets
from tegu.tune import sweep
try:
    libc.unshare(libc.CLONE_NEWNET)
    loopback_up()
    list(tcp_sockets([TIME_WAIT]))
except OSError as e:
    print(e)
    sys.exit(77)

def close_some(count, address):
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=kind, backlog=count) as server:
        for _ in range(count):
            client = socket.create_connection(server.getsockname()[:2])
            other = server.accept()[0]
            client.shutdown(socket.SHUT_WR)
            other.close()
            client.recv(1)
            client.close()

def there():
    return len(list(tcp_sockets([TIME_WAIT])))

empty = sweep(0)
assert (empty.seen, empty.ended, empty.next_in) == (0, 0, None), empty
close_some(100, "127.0.0.1")
close_some(50, "::1")
young = sweep(60)
assert (young.seen, young.ended) == (150, 0), young
assert 0 < young.next_in <= 60, young
assert there() == 150
time.sleep(1.1)
first = there()
close_some(30, "127.0.0.1")
old = sweep(1)
assert old.ended >= 150 and old.refused == 0, old
left = there()
assert left <= 30 and old.seen - old.ended == left, (old, left)
try:
    end = sweep(0)
except Exception as e:
    print("refused", e)
    sys.exit(1)
assert end.ended == left and there() == 0, end
# The same from outside, by the namespace's file.
close_some(20, "127.0.0.1")
path = f"/proc/{os.getpid()}/ns/net"
assert sweep(0, path).ended == 20
assert there() == 0
print("done")
"""


def test_sweeps_old_sockets_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    done = subprocess.run(
        [sys.executable, "-c", _SWEEP], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 77:
        pytest.skip(f"no sock_diag in a network namespace here: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "done"


def test_the_kernels_own_setting_goes_first(tmp_path: Path) -> None:
    sysctl = tmp_path / "proc/sys/net/ipv4/tcp_tw_timeout"
    sysctl.parent.mkdir(parents=True)
    sysctl.write_text("60")
    assert put(300, root=tmp_path).by == "kernel"
    assert sysctl.read_text() == "300"
    kept = tmp_path / "etc/sysctl.d/90-tegu-tune.conf"
    assert "= 300" in kept.read_text()
    assert current(root=tmp_path).seconds == 300
    assert clear(root=tmp_path).seconds == 60
    assert not kept.exists()


def test_without_it_a_sweep(tmp_path: Path) -> None:
    assert current(root=tmp_path).by == "default"
    setting = put(20, ("all",), root=tmp_path)
    assert setting.by == "sweep" and not setting.warning
    assert current(root=tmp_path) == setting
    with pytest.raises(UnsupportedError, match="only end it sooner"):
        put(61, root=tmp_path)
    assert clear(root=tmp_path).by == "default"


def test_a_short_time_is_warned_of(tmp_path: Path) -> None:
    assert "quiet time" in put(4, root=tmp_path).warning
    assert not put(5, root=tmp_path).warning


@pytest.mark.parametrize("bad", [0, -1, 601, 10**6])
def test_out_of_range(tmp_path: Path, bad: int) -> None:
    with pytest.raises(UsageError, match="1 to 600"):
        put(bad, root=tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seconds": "x"}', '{"seconds": 0}', "null"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    config = tmp_path / "etc/tegu/tcp_tw_timeout.json"
    config.parent.mkdir(parents=True)
    config.write_text(content)
    with pytest.raises(TeguError, match=r"tcp_tw_timeout\.json is damaged"):
        current(root=tmp_path)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["tune", "set", "tcp_tw_timeout"], "is not NAME=SECONDS"),
        (["tune", "set", "tcp_tw_timeout=x"], "is not NAME=SECONDS"),
        (["tune", "set", "tcp_fin=3"], "there is no setting"),
        (["tune", "set", "tcp_tw_timeout=601"], "1 to 600"),
        (["tune", "unset", "x"], "there is no setting"),
    ],
)
def test_bad_words(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert said in capsys.readouterr().err


@given(st.binary(max_size=300))
def test_any_bytes_from_the_kernel(data: bytes) -> None:
    sockdiag.parse_message(data)
    from tegu.linux.conntrack import parse_flow

    parse_flow(data)
    for value in netlink.attributes(data).values():
        assert value in data


def test_destroy_says_what_concerns_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, kind: int, bodies: list[bytes]) -> list[int]:
        return [errno.EOPNOTSUPP] * len(bodies)

    monkeypatch.setattr(netlink.Netlink, "ask_all", refuse)
    one = sockdiag.TcpSocket(6, ("::1", 1), ("::1", 2), 0, 0, 0, socket.AF_INET6, bytes(48))
    with pytest.raises(OSError, match="refuses SOCK_DESTROY"):
        sockdiag.destroy([one])
    assert sockdiag.destroy([]) == (0, 0)
