"""Policies under systemd, and on a bare hierarchy, in a guest of Tegu Linux."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tegu.lab import QemuMachine, QemuOptions, Result
from tegu.lab.seed import Seed
from tegu.packages.tegu_deb import host_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PACKAGES = "/usr/lib/python3/dist-packages"
UNITS = """
[latency]
match = ["unit:web.service"]
memory_low = "64M"
[batch]
match = ["slice:jobs"]
[devices]
vda = "bfq"
[slo]
p99 = "5ms"
feed = "file:/run/web.p99"
stale = "5s"
[loop]
window = "500ms"
samples = 10
knobs = ["cpu", "io"]
ceiling = { cpu = 2, io = 1000 }
"""
BARE = """
[latency]
match = ["cgroup:/system.slice/box.service/web"]
memory_low = "16M"
[batch]
match = ["cgroup:/system.slice/box.service/jobs"]
[devices]
vda = "none"
"""
SHOW = (
    "cd /sys/fs/cgroup; for f in {files}; do echo \"$f $(tr '\\n' ' ' <$f)\"; done;"
    # Which one is chosen: what else there is grows when a module is loaded.
    r" grep -o '\[.*\]' /sys/block/vda/queue/scheduler;"
    " cat /sys/block/vda/queue/iosched/* 2>/dev/null;"
    " ls /run/systemd/system.control /run/systemd/system.control/* 2>/dev/null"
)
UNIT_FILES = " ".join(
    f"{group}/{name}"
    for group in ("system.slice/web.service", "jobs.slice", "system.slice")
    for name in ("cpu.weight", "cpu.idle", "cpu.max", "memory.low", "io.weight", "io.max")
)


@pytest.fixture(scope="module")
def guest(tegu_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuMachine]:
    options = QemuOptions(image=tegu_image, memory=1 << 30, cpus=1, seed=Seed(hostname="qos"))
    scratch = tmp_path_factory.mktemp("guest")
    with tarfile.open(scratch / "tegu.tar", "w") as tar:
        for name, content in host_files():
            info = tarfile.TarInfo(f"tegu/{name}")
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    with QemuMachine(options) as machine:
        machine.wait_for_ssh(900)
        machine.copy_in(scratch / "tegu.tar", "/tmp/tegu.tar")
        do(machine, f"tar -C {PACKAGES} -xf /tmp/tegu.tar")
        do(machine, "systemd-run -q --unit=web --slice=system.slice sleep 9999")
        do(machine, "systemd-run -q --unit=job1 --slice=jobs.slice sleep 9999")
        do(machine, "systemctl set-property --runtime jobs.slice CPUWeight=50")
        yield machine


def do(machine: QemuMachine, command: str) -> Result:
    done = machine.run(command, root=True, timeout=600)
    assert done.exit_code == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def write(machine: QemuMachine, path: str, text: str) -> None:
    do(machine, f"cat >{path} <<'END'\n{text}\nEND")


def tegu(machine: QemuMachine, command: str) -> Any:
    return json.loads(do(machine, f"tegu qos {command} --json").stdout)


def seen(machine: QemuMachine, file: str) -> str:
    return do(machine, f"cat /sys/fs/cgroup/{file}").stdout.strip()


def test_units(guest: QemuMachine) -> None:
    show = SHOW.format(files=UNIT_FILES)
    before = do(guest, show).stdout
    write(guest, "/tmp/units.toml", UNITS)
    done = tegu(guest, "apply /tmp/units.toml")
    assert done["refused"] == []
    assert done["members"]["batch"] == ["/jobs.slice"]
    assert seen(guest, "system.slice/web.service/cpu.weight") == "10000"
    assert seen(guest, "system.slice/web.service/memory.low") == str(64 << 20)
    assert seen(guest, "system.slice/memory.low") == str(64 << 20)
    assert seen(guest, "jobs.slice/cpu.idle") == "1"
    assert "[bfq]" in do(guest, "cat /sys/block/vda/queue/scheduler").stdout
    assert seen(guest, "jobs.slice/io.bfq.weight").split() == ["default", "1"]
    # What systemd does later does not take it away.
    do(guest, "systemctl daemon-reload && systemctl set-property --runtime jobs.slice TasksMax=99")
    assert seen(guest, "jobs.slice/cpu.idle") == "1"
    assert {r["state"] for r in tegu(guest, "status")} == {"holds"}
    # Siblings are web.service's slice and jobs.slice: nothing leaks.
    assert tegu(guest, "explain /tmp/units.toml")["leaks"] == []
    do(guest, "systemctl set-property --runtime jobs.slice TasksMax=")
    do(guest, "rm -f /run/systemd/system.control/jobs.slice.d/50-TasksMax.conf")
    undone = tegu(guest, "undo")
    assert undone["conflicts"] == [] and undone["failed"] == []
    assert do(guest, show).stdout == before


def test_the_service(guest: QemuMachine) -> None:
    """Killed by SIGKILL: the shares hold; a new start restores the limits, a stop everything."""
    show = SHOW.format(files=UNIT_FILES)
    before = do(guest, show).stdout
    write(guest, "/tmp/units.toml", UNITS)
    run = (
        "systemd-run -q --unit=keeper --service-type=notify -p Restart=no"
        " tegu qos serve /tmp/units.toml --listen 127.0.0.1:9871"
    )
    do(guest, run)
    capped = "until grep -q '^20000 ' /sys/fs/cgroup/jobs.slice/cpu.max; do sleep 0.5; done"
    do(guest, capped)  # there is no feed: batch is capped at a tenth of two processors
    metrics = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9871/metrics').read())"
    assert 'state="safe"' in do(guest, f'python3 -c "{metrics}"').stdout
    assert tegu(guest, "top")["state"] == "safe"
    refused = guest.run("tegu qos undo", root=True, timeout=60)
    assert refused.exit_code == 33 and "another tegu is at work" in refused.stderr
    do(
        guest,
        "systemctl kill -s KILL keeper; while systemctl -q is-active keeper; do sleep 1; done",
    )
    assert seen(guest, "jobs.slice/cpu.idle") == "1"
    assert seen(guest, "system.slice/web.service/cpu.weight") == "10000"
    do(guest, "systemctl reset-failed keeper")
    do(guest, run)
    do(guest, capped)
    do(guest, "systemctl stop keeper")
    assert do(guest, show).stdout == before
    assert guest.run("ls /run/tegu/qos.journal", root=True).exit_code != 0


def test_below_a_delegated_unit(guest: QemuMachine) -> None:
    """Where systemd has handed a subtree over, files are written; exactly undone, weights too."""
    do(guest, "systemd-run -q --unit=box -p Delegate=yes sleep 9999")
    base = "/sys/fs/cgroup/system.slice/box.service"
    do(
        guest,
        f"cd {base}; mkdir main web jobs;"
        " for p in $(cat cgroup.procs); do echo $p >main/cgroup.procs; done;"
        " echo +cpu +memory +io >cgroup.subtree_control; echo 50 >jobs/cpu.weight",
    )
    names = "cpu.weight cpu.idle cpu.weight.nice memory.low io.bfq.weight"
    show = f"cd {base}; for g in web jobs; do for f in {names}; do cat $g/$f; done; done"
    before = do(guest, show).stdout
    write(guest, "/tmp/bare.toml", BARE)
    done = tegu(guest, "apply /tmp/bare.toml")
    assert done["refused"] == [], done
    assert seen(guest, "system.slice/box.service/jobs/cpu.idle") == "1"
    assert seen(guest, "system.slice/box.service/memory.low") == str(16 << 20)
    tegu(guest, "undo")
    assert do(guest, show).stdout == before
    do(guest, f"cd {base}; rmdir web jobs; systemctl stop box")


def test_run(guest: QemuMachine) -> None:
    done = do(guest, "tegu qos run --class batch -- sh -c 'cat /proc/self/cgroup; exit 0'")
    group = done.stdout.strip().partition("::")[2]
    assert group.startswith("/tegu_batch.slice/")
    assert do(guest, "systemctl show tegu_batch.slice -p CPUWeight").stdout.strip().endswith("idle")
    failed = guest.run("tegu qos run -- sh -c 'exit 7'", root=True, timeout=60)
    assert failed.exit_code == 7
    assert guest.run("tegu qos run -- nosuchprogram", root=True, timeout=60).exit_code == 2
