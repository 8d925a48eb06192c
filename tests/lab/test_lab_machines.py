"""The machines that are not ours: this one, and hosts by SSH."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import MachineError, UnsupportedError, UsageError
from tegu.lab.local import LocalMachine
from tegu.lab.machine import shell_words
from tegu.lab.remote import SshMachine
from tegu.lab.ssh import Address, Ssh


def test_this_machine(tmp_path: Path) -> None:
    with LocalMachine() as machine:
        assert machine.wait_for_ssh() == 0
        done = machine.run("echo out; echo err >&2; cat; exit 5", stdin="in")
        assert (done.exit_code, done.stdout, done.stderr) == (5, "out\nin", "err\n")
        assert machine.run(["printf", "%s", "a b; $HOME"]).stdout == "a b; $HOME"
        assert machine.run("kill -TERM $$").exit_code == 128 + 15
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "f").write_text("x")
        machine.copy_in(tmp_path / "d", str(tmp_path / "e"))
        machine.copy_out(str(tmp_path / "e" / "f"), tmp_path / "g")
        assert (tmp_path / "g").read_text() == "x"
        with pytest.raises(MachineError, match="cannot copy"):
            machine.copy_out("/none/f", tmp_path)
        with pytest.raises(MachineError, match="did not end within"):
            machine.run("sleep 600", timeout=0.2)
        assert machine.console() == ""


def test_this_machine_is_not_switched_off() -> None:
    machine = LocalMachine()
    for work in (
        machine.reboot,
        machine.power_off,
        machine.kill,
        machine.wait_for_exit,
        lambda: machine.wait_for_console("x"),
    ):
        with pytest.raises(UnsupportedError):
            work()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", Address("host")),
        ("ssh://host", Address("host")),
        ("ssh://me@host:2222", Address("host", 2222, "me")),
        ("ssh://me@host:2222/", Address("host", 2222, "me")),
        ("me@10.0.0.1", Address("10.0.0.1", None, "me")),
        ("ssh://root@[fe80::1]:22", Address("fe80::1", 22, "root")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    with_machine = SshMachine.parse(text)
    assert with_machine.address == address
    with_machine.release()


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=x", "ssh://-x", "a b", "a@b@c", "host:port", "-l@host", "ssh://a/b"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="not an SSH address"):
        SshMachine.parse(text)


@given(st.text(max_size=20))
def test_no_address_becomes_an_option(text: str) -> None:
    try:
        machine = SshMachine.parse(text)
    except UsageError:
        return
    machine.release()
    assert not machine.address.host.startswith("-")
    assert not (machine.address.user or "").startswith("-")


def test_words_for_the_shell() -> None:
    assert shell_words(["a b", "c"]) == "'a b' c"
    assert shell_words("x | y", sudo=True) == "sudo -n -- /bin/sh -c 'x | y'"


def test_an_ephemeral_machine_is_kept_apart_from_the_users_ssh(tmp_path: Path) -> None:
    address = Address("127.0.0.1", 2222, "tegu", (tmp_path / "key",), tmp_path / "known_hosts")
    line = Ssh("m", address, tmp_path).argv()
    assert line[1:3] == ["-F", "/dev/null"]
    assert f'UserKnownHostsFile="{tmp_path}/known_hosts"' in line
    assert "IdentitiesOnly=yes" in line
    assert line[-1] == "127.0.0.1"
    theirs = Ssh("m", Address("web"), tmp_path).argv()
    assert "/dev/null" not in theirs
    assert not [w for w in theirs if w.startswith(("User=", "UserKnownHostsFile", "StrictHost"))]


def test_a_host_that_refuses(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"m did not answer on SSH within 0\.5 s \("):
        Ssh("m", Address("127.0.0.1", 1, known_hosts=tmp_path / "k"), tmp_path).wait(0.5)
    machine = SshMachine(Address("127.0.0.1", 1))
    try:
        with pytest.raises(
            MachineError, match=r"127\.0\.0\.1:1: the connection broke while `true`"
        ):
            machine.run("true")
        with pytest.raises(UnsupportedError, match="cannot be taken away"):
            machine.kill()
        with pytest.raises(UnsupportedError, match="shows no console"):
            machine.wait_for_console("x")
    finally:
        machine.release()
