"""A real guest, booted once from the command line, used, and killed in the middle of a command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tegu.errors import MachineError
from tegu.lab.boot import cloud_init
from tegu.lab.qemu import QemuMachine
from tegu.lab.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

USER_DATA = """\
#cloud-config
write_files:
  - path: /etc/from-user-data
    content: grüße
"""


@dataclass
class Guest:
    """A machine that `tegu boot` has left running, with the environment that it is known in."""

    image: Path
    digest: str
    base: Path
    environment: dict[str, str]
    up: dict[str, Any]

    def tegu(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tegu", *words], env=self.environment, input=stdin,
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip

    @property
    def registry(self) -> Registry:
        return Registry(self.base / "state" / "tegu" / "machines")

    def machine(self) -> QemuMachine:
        return QemuMachine.attach("guest", registry=self.registry)


def digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@pytest.fixture(scope="module")
def guest(tegu_image: Path) -> Iterator[Guest]:
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as name:
        base = Path(name)
        environment = dict(os.environ) | {"TMPDIR": name, "XDG_STATE_HOME": f"{name}/state"}
        environment.pop("XDG_RUNTIME_DIR", None)
        (base / "user-data").write_text(USER_DATA)
        found = Guest(tegu_image, digest(tegu_image), base, environment, {})
        done = found.tegu(
            "boot", str(tegu_image), "--name", "guest", "--user", "alice", "--json",
            "--user-data", f"{name}/user-data", "--memory", "768M", "--timeout", "900",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.up = json.loads(done.stdout)
        try:
            yield found
        finally:
            found.tegu("stop", "guest", "--kill")


def test_boot_says_how_to_reach_it(guest: Guest) -> None:
    up = guest.up
    assert (up["name"], up["user"], up["persistent"]) == ("guest", "alice", False)
    assert up["cloud_init"] == "done"
    assert up["ssh_seconds"] > 0
    assert up["accelerator"] in ("kvm", "tcg")
    (listed,) = json.loads(guest.tegu("machines", "--json").stdout)
    assert listed["ssh_port"] == up["ssh_port"]
    assert "guest" in guest.tegu("machines").stdout


def test_the_exit_code_is_the_commands(guest: Guest) -> None:
    # Captured, so that a connection left open in the background would be noticed as a hang.
    done = guest.tegu("ssh", "guest", "--", "id -un; hostname; cat; exit 7", stdin="in")
    assert (done.returncode, done.stdout) == (7, "alice\nguest\nin")
    assert guest.tegu("ssh", "guest", "--", "exit 255").returncode == 255


def test_commands(guest: Guest) -> None:
    machine = guest.machine()
    done = machine.run("echo ä; echo err >&2; cat; exit 255", stdin="x" * 100_000)
    assert (done.exit_code, done.stderr) == (255, "err\n")
    assert done.stdout == "ä\n" + "x" * 100_000
    assert machine.run(["printf", "%s|", "a b", "$HOME;"]).stdout == "a b|$HOME;|"
    assert machine.run('id -u; echo "it\'s"', root=True).stdout == "0\nit's\n"
    assert machine.run("cat /etc/from-user-data", root=True).stdout == "grüße"
    assert cloud_init(machine) == "done"


def test_a_command_past_its_time_leaves_the_machine_usable(guest: Guest) -> None:
    with pytest.raises(MachineError, match="guest: `sleep 600` did not end within 1 s"):
        guest.machine().run("sleep 600", timeout=1)
    assert guest.machine().run("true").exit_code == 0


def test_files_go_both_ways(guest: Guest) -> None:
    tree = guest.base / "tree"
    (tree / "sub dir").mkdir(parents=True)
    (tree / "sub dir" / "f").write_bytes(bytes(range(256)) * 100)
    assert guest.tegu("cp", str(tree), "guest:/tmp/tree").returncode == 0
    assert guest.tegu("cp", "guest:/tmp/tree/sub dir/f", str(guest.base / "f")).returncode == 0
    assert (guest.base / "f").read_bytes() == (tree / "sub dir" / "f").read_bytes()
    done = guest.tegu("cp", "guest:/none", str(guest.base))
    assert done.returncode == 10
    assert done.stderr.startswith("tegu: guest: cannot copy")
    assert len(done.stderr.splitlines()) == 1


def test_the_console_was_kept(guest: Guest) -> None:
    said = guest.tegu("console", "guest", "--log").stdout
    assert "\x1b" not in said
    assert guest.machine().wait_for_console("login:|Reached target|cloud-init|Linux", timeout=30)
    machine = guest.machine()
    after = len(machine.console())
    machine.run("echo tegu was here > /dev/console", root=True)
    # A login prompt may stand before it on the line.
    line = machine.wait_for_console("tegu was here", timeout=60, after=after)
    assert line.endswith("tegu was here")


def test_a_changed_host_key_is_refused(guest: Guest) -> None:
    machine = guest.machine()
    machine.ssh.close()
    known = machine.record.known_hosts
    before = known.read_text()
    other = "AAAAC3NzaC1lZDI1NTE5AAAAIL4w79xZLEKYzgKvuGJRvbKSc/v8z6L6M6Tc5L0OBDQe"
    known.write_text(f"[127.0.0.1]:{machine.record.ssh_port} ssh-ed25519 {other}\n")
    try:
        with pytest.raises(MachineError, match="another SSH host key than before"):
            machine.wait_for_ssh(60)
    finally:
        known.write_text(before)
    assert machine.run("true").exit_code == 0


def test_a_plan_runs_on_a_machine_that_is_up(guest: Guest, tmp_path: Path) -> None:
    plan = tmp_path / "p.toml"
    plan.write_text(
        'name = "p"\n[[step]]\nname = "root"\nrun = "id -u"\nroot = true\nstdout = {equals = "0"}\n'
        '[[step]]\nname = "host"\non = "host"\nrun = "test {{ ssh_port }} -gt 0"\n'
    )
    done = guest.tegu("test", str(plan), "guest", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["counts"]["passed"] == 4
    assert guest.machine().alive()


def test_a_machine_that_dies_in_the_middle_of_a_command(guest: Guest) -> None:
    """Last: it ends the guest. The call returns with the reason, long before its timeout."""
    machine = guest.machine()
    raised: list[MachineError] = []

    def work() -> None:
        try:
            machine.run("echo started > /tmp/started; sleep 3600", timeout=3600)
        except MachineError as e:
            raised.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    while machine.run("cat /tmp/started").stdout != "started\n":
        time.sleep(0.2)
    machine.process.kill()
    thread.join(60)
    assert not thread.is_alive()
    assert raised
    assert raised[0].message.startswith("guest has died (")
    # The next look cleans up, and the image is what it was.
    assert json.loads(guest.tegu("machines", "--json").stdout) == []
    assert not list(guest.base.glob("tegu-*"))
    assert digest(guest.image) == guest.digest
