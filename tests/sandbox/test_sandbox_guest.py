"""Limits by cgroup v2, under the service that docs/sandbox.md shows, in a guest of Tegu Linux."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tegu.lab import QemuMachine, QemuOptions, Result
from tegu.lab.seed import Seed
from tegu.packages.tegu_deb import host_files
from tegu.sandbox.native import find_launcher

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = "/usr/lib/python3/dist-packages"
BOXES = """
import json, time
from pathlib import Path
from tegu.errors import TeguError
from tegu.sandbox import Sandbox, run
from tegu.sandbox.client import box_spec, supervisor

said = {}
limits = {f["name"]: f["detail"] for f in supervisor("doctor")}
said["providers"] = [limits[name] for name in ("memory", "cpus", "pids")]
group = next(Path("/sys/fs/cgroup").glob("**/tegu-[0-9]*-*"))
said["unit"] = group.parent.name
big = "x = bytearray(200 << 20)"
done = run(["python3", "-c", big], box=box_spec(memory="64M"), timeout=300)
said["starved"] = [done.exit_code, done.out_of_memory]
said["enough"] = run("echo yes", box=box_spec(memory="64M"), timeout=300).text

bomb = '''
import os, time
children = 0
for user in range(1, 4):
    for _ in range(12):
        try:
            pid = os.fork()
        except OSError:
            continue
        if pid == 0:
            os.setuid(user)
            time.sleep(600)
        children += 1
print(children, flush=True)
'''
with Sandbox.create(pids=16, memory="96M", cpus=0.2) as box:
    said["own group"] = box.run("cat /proc/self/cgroup").text
    names = ("memory.max", "pids.max", "cpu.max", "memory.oom.group")
    said["files"] = {n: (group / box.name / n).read_text().split() for n in names}
    said["children"] = int(box.run(["python3", "-c", bomb]).text)
    said["usage, full"] = box.info()["usage"]
with Sandbox.create(cpus=0.2) as box:
    box.run("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done", timeout=300)
    said["usage, busy"] = box.info()["usage"]
    held = Sandbox.create(memory="48M")
    # A program that starves takes its own box along, and no other.
    try:
        said["killed"] = held.run(["python3", "-c", big]).exit_code
    except TeguError:
        said["killed"] = "box"
    said["neighbour"] = box.run("echo well").text
    held.close()
from tegu.sandbox.fn import FunctionSpec, deploy, invoke, remove
from tegu.store import Store
store = Store(Path("/var/tmp/functions"))
Path("/tmp/app.py").write_text(
    "import os\\ndef main(n):\\n    x = bytearray(n)\\n    return [len(x), os.getpid()]\\n"
)
spec = FunctionSpec("f", handler="app:main", memory=64 << 20, cpus=1, pids=20, timeout=600)
deploy(spec, Path("/tmp/app.py"), store=store)
answers = [invoke("f", n, store=store) for n in (1 << 20, 200 << 20, 2 << 20)]
said["functions"] = [a.outcome for a in answers]
said["results"] = [answers[0].result(), answers[2].result()]
said["peak"] = answers[1].account["memory_peak"]
remove("f", store=store)
end = time.monotonic() + 60
while any(p.is_dir() for p in group.glob("[bf]*-*")) and time.monotonic() < end:
    time.sleep(0.1)
said["left"] = [p.name for p in group.glob("[bf]*-*") if p.is_dir()]
said["zygotes"] = supervisor("list")["zygotes"]
print("SAID " + json.dumps(said))
"""


def unit() -> str:
    """Return the service as the documentation shows it."""
    text = (ROOT / "docs/sandbox.md").read_text()
    found = re.search(r"    \[Service\]\n.*?WantedBy=\S+\n", text, re.DOTALL)
    assert found
    return re.sub(r"^    ", "", found[0], flags=re.MULTILINE)


@pytest.fixture(scope="module")
def guest(tegu_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuMachine]:
    options = QemuOptions(image=tegu_image, memory=1 << 30, cpus=2, seed=Seed(hostname="boxes"))
    with QemuMachine(options) as machine:
        machine.wait_for_ssh(900)
        install(machine, tmp_path_factory.mktemp("guest"))
        yield machine


def do(machine: QemuMachine, command: str) -> Result:
    done = machine.run(command, root=True, timeout=900)
    assert done.exit_code == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def install(machine: QemuMachine, scratch: Path) -> None:
    """Lay this tree's host half over what the image has, and add the service."""
    with tarfile.open(scratch / "tegu.tar", "w") as tar:
        for name, content in host_files():
            info = tarfile.TarInfo(f"tegu/{name}")
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    (scratch / "tegu-sandbox.service").write_text(unit())
    (scratch / "boxes.py").write_text(BOXES)
    for name in ("tegu.tar", "tegu-sandbox.service", "boxes.py"):
        machine.copy_in(scratch / name, f"/tmp/{name}")
    do(machine, f"tar -C {PACKAGES} -xf /tmp/tegu.tar")
    do(machine, "cp /tmp/tegu-sandbox.service /etc/systemd/system/")
    do(machine, "systemctl daemon-reload")


def boxes(machine: QemuMachine) -> dict[str, Any]:
    """Start the service, run boxes in it, end it; return what was seen."""
    do(machine, "systemctl restart tegu-sandbox")
    do(machine, "until [ -S /run/tegu/sandbox.sock ]; do sleep 0.3; done")
    done = do(machine, "python3 /tmp/boxes.py")
    do(machine, "systemctl stop tegu-sandbox")
    left = do(machine, "ls -d /sys/fs/cgroup/system.slice/tegu-sandbox* || true")
    assert left.stdout.strip() == ""
    said: dict[str, Any] = json.loads(done.stdout.partition("SAID ")[2])
    return said


@pytest.mark.parametrize("how", ["python", "compiled"])
def test_limits_by_cgroup_v2(guest: QemuMachine, how: str) -> None:
    if how == "compiled":
        launcher = find_launcher()
        if launcher is None:
            pytest.skip("the launcher was not built: there was no C compiler at ./dev setup")
        guest.copy_in(launcher, "/tmp/tegu-box")
        do(guest, f"install -m 755 /tmp/tegu-box {PACKAGES}/tegu/sandbox/native/tegu-box")
        guest.copy_in(launcher.with_name("tegu-fork.so"), "/tmp/tegu-fork.so")
        do(guest, f"install -m 755 /tmp/tegu-fork.so {PACKAGES}/tegu/sandbox/native/")
    said = boxes(guest)
    assert said["zygotes"] == {"host": how}
    assert said["providers"] == ["cgroup v2", "cgroup v2", "cgroup v2 for the whole box"]
    assert said["unit"] == "tegu-sandbox.service"
    assert said["starved"] == [137, True]
    assert said["enough"] == "yes\n"
    # Its own group is the root of its cgroup namespace: it was cloned into it, not moved.
    assert said["own group"] == "0::/\n"
    assert said["files"] == {
        "memory.max": [str(96 << 20)],
        "pids.max": ["16"],
        "cpu.max": ["20000", "100000"],
        "memory.oom.group": ["1"],
    }
    assert 10 <= said["children"] <= 14  # of 36 asked for, by three users
    assert said["usage, full"]["pids"] <= 16
    assert 0 < said["usage, full"]["memory"] <= said["usage, full"]["memory_peak"] <= 96 << 20
    assert said["usage, busy"]["cpu_us"] > 0
    assert said["usage, busy"]["throttled_us"] > 0
    assert said["killed"] in ("box", 137)
    assert said["neighbour"] == "well\n"
    assert said["functions"] == ["ok", "out_of_memory", "ok"]
    assert said["results"] == [[1 << 20, 1], [2 << 20, 1]]
    assert 32 << 20 < said["peak"] <= 64 << 20
    assert said["left"] == []
