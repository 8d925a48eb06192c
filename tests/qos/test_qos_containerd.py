"""A real containerd asks our plugin: pods created as the kubelet creates them, in a guest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.qos.cri import Runtime, write_image

from tegu.image import build_definition
from tegu.lab import QemuMachine, QemuOptions, Result
from tegu.lab.seed import Seed
from tegu.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parent.parent.parent
DEFINITION = """
include = [{include}]
overlay = ["files"]
[packages]
install = ["containerd", "python3-protobuf"]
[image]
size = "4G"
"""
CONTAINERD = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "tegu.invalid/box:1"
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  plugin_registration_timeout = "300s"
  plugin_request_timeout = "300s"
"""
POLICY = """
[latency]
memory_low = "16M"
"""
PODS = "/kubepods/besteffort/pod1"


@pytest.fixture(scope="module")
def guest(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QemuMachine]:
    if not os.environ.get("TEGU_TEST_PODS"):
        pytest.skip("it builds an image and waits for an emulated containerd: TEGU_TEST_PODS=1")
    if shutil.which("busybox") is None:
        pytest.skip("there is no busybox here to make an image of")
    scratch = tmp_path_factory.mktemp("containerd")
    for name, text in (("containerd/config.toml", CONTAINERD), ("tegu/pods.toml", POLICY)):
        path = scratch / "files/etc" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    definition = scratch / "tegu.toml"
    definition.write_text(DEFINITION.format(include=json.dumps(str(ROOT / "distro/tegu.toml"))))
    built = build_definition(definition, store=shared_store)
    busybox = shutil.which("busybox")
    assert busybox is not None
    write_image(scratch / "box.tar", Path(busybox).read_bytes())
    options = QemuOptions(image=built.path, memory=1536 << 20, cpus=1, seed=Seed(hostname="pods"))
    with QemuMachine(options) as machine:
        machine.wait_for_ssh(900)
        machine.copy_in(scratch / "box.tar", "/tmp/box.tar")
        do(machine, "systemctl start containerd")
        do(machine, "ctr -n k8s.io images import /tmp/box.tar")
        do(machine, "systemd-run -q --unit=nri tegu qos nri /etc/tegu/pods.toml")
        do(machine, "chmod 666 /run/containerd/containerd.sock; chmod 711 /run/containerd")
        yield machine


@pytest.fixture
def runtime(guest: QemuMachine, tmp_path: Path) -> Iterator[Runtime]:
    """containerd's socket, brought here through SSH."""
    near = tmp_path / "c.sock"
    argv = guest.ssh.argv("-N", "-S", "none", "-L", f"{near}:/run/containerd/containerd.sock")
    tunnel = subprocess.Popen(argv)
    try:
        while not near.exists():
            assert tunnel.poll() is None, "ssh has ended"
            time.sleep(0.2)
        made = Runtime(near)
        yield made
        made.close()
    finally:
        tunnel.terminate()
        tunnel.wait(60)


def do(machine: QemuMachine, command: str) -> Result:
    done = machine.run(command, root=True, timeout=900)
    assert done.exit_code == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def seen(machine: QemuMachine, group: str, *files: str) -> list[str]:
    paths = " ".join(f"/sys/fs/cgroup{group}/{f}" for f in files)
    return do(machine, f"cat {paths}").stdout.split("\n")[: len(files)]


def group_of(machine: QemuMachine, container: str) -> str:
    """Return the group of a container's process."""
    found = do(machine, f"ctr -n k8s.io tasks ps {container} | awk 'NR == 2 {{ print $1 }}'")
    return do(machine, f"cat /proc/{found.stdout.strip()}/cgroup").stdout.strip()[3:]


def test_containers_get_their_class(guest: QemuMachine, runtime: Runtime) -> None:
    do(guest, "until journalctl -u containerd | grep -q tegu-qos; do sleep 1; done")
    keys = ("cpu.idle", "cpu.weight", "memory.low")
    plain = runtime.pod("plain", {})
    group = group_of(guest, runtime.container(plain, "one"))
    assert seen(guest, group, *keys) == ["0", "20", "0"]  # the kubelet's shares of 512
    batch = runtime.pod("job", {"qos.tegu.io/class": "batch"})
    group = group_of(guest, runtime.container(batch, "one"))
    assert seen(guest, group, "cpu.idle") == ["1"]
    latency = runtime.pod("web", {"qos.tegu.io/class": "latency"})
    group = group_of(guest, runtime.container(latency, "one"))
    assert seen(guest, group, *keys) == ["0", "10000", str(16 << 20)]
    odd = runtime.pod("odd", {"qos.tegu.io/class": "fast"})
    group = group_of(guest, runtime.container(odd, "one"))
    assert seen(guest, group, *keys) == ["0", "20", "0"]
    assert "'fast' is none of" in do(guest, "journalctl -u nri").stdout
    for pod in (plain, batch, latency, odd):
        runtime.remove(pod)


def test_pods_with_a_group_of_their_own(guest: QemuMachine, runtime: Runtime) -> None:
    """As under the kubelet: the pod's group is settled by us, and taken back when we end."""
    do(guest, "until journalctl -u containerd | grep -q tegu-qos; do sleep 1; done")
    do(
        guest,
        "cd /sys/fs/cgroup; for g in . kubepods kubepods/besteffort; do mkdir -p $g;"
        " echo +cpu +memory +io >$g/cgroup.subtree_control; done;"
        " mkdir kubepods/besteffort/pod1 kubepods/besteffort/pod2",
    )
    latency = runtime.pod("web2", {"qos.tegu.io/class": "latency"}, PODS)
    batch = runtime.pod("job2", {"qos.tegu.io/class": "batch"}, PODS[:-1] + "2")
    inside = group_of(guest, runtime.container(latency, "one"))
    assert inside.startswith(f"{PODS}/")
    assert seen(guest, inside, "cpu.weight", "memory.low") == ["20", str(16 << 20)]
    runtime.container(batch, "one")
    assert seen(guest, PODS, "cpu.weight", "memory.low") == ["10000", str(16 << 20)]
    assert seen(guest, PODS[:-1] + "2", "cpu.idle") == ["1"]
    do(guest, "systemctl stop nri")
    assert seen(guest, PODS, "cpu.weight", "memory.low") == ["100", "0"]
    assert seen(guest, PODS[:-1] + "2", "cpu.idle", "cpu.weight") == ["0", "100"]
    assert do(guest, "systemctl show nri -p Result").stdout.strip() == "Result=success"
    # What is created now has no class; the runtime goes on without us.
    late = runtime.pod("late", {"qos.tegu.io/class": "batch"})
    group = group_of(guest, runtime.container(late, "one"))
    assert seen(guest, group, "cpu.idle") == ["0"]
    for pod in (latency, batch, late):
        runtime.remove(pod)
