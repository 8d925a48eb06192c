"""Clients that we did not write: podman and containerd, with `tegu-oci` as their runtime."""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.oci.conftest import SCRIPT, until

from tegu.sandbox.gvisor.trial import try_runsc

BUSYBOX = Path("/bin/busybox")
APPLETS = ["sh", "cat", "echo", "id", "ls", "sleep", "grep", "touch", "hostname", "ip", "true"]
APPLETS.append("uname")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the clients' services run as root here"),
    pytest.mark.skipif(
        not Path("/usr/share/doc/busybox-static").exists(),
        reason="the image is made of busybox-static, which is not installed",
    ),
]


def image() -> bytes:
    """Return a root file system as a tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name in ("etc", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
    return out.getvalue()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory with the runtimes as programs; short, for sockets in it."""
    made = Path(tempfile.mkdtemp(prefix="tegu-o", dir="/tmp"))
    for name, option in (("tegu-oci", ""), ("tegu-oci-gvisor", "--class gvisor")):
        program = made / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {SCRIPT} {option} "$@"\n')
        program.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


Call = Callable[..., Any]


@pytest.fixture(scope="module")
def podman(directory: Path) -> Iterator[Call]:
    """Podman with a store of its own, and the image in it."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    conf = directory / "containers.conf"
    conf.write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        'runtime_supports_json = ["tegu-oci", "tegu-oci-gvisor"]\n'
        f'[engine.runtimes]\ntegu-oci = ["{directory}/tegu-oci"]\n'
        f'tegu-oci-gvisor = ["{directory}/tegu-oci-gvisor"]\n'
    )
    base = [
        "podman", "--storage-driver", "vfs",
        "--root", str(directory / "root"), "--runroot", str(directory / "run"),
        "--tmpdir", str(directory / "libpod"),
    ]  # fmt: skip
    env = os.environ | {"CONTAINERS_CONF": str(conf)}

    def call(*words: str, runtime: str = "tegu-oci", check: bool = True, **more: Any) -> Any:
        done = subprocess.run(
            [*base, "--runtime", runtime, *words],
            env=env,
            **{"capture_output": True, "text": True, "timeout": 300, "check": False} | more,
        )
        if check:
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    call("import", "-", "test", input=image(), text=False)
    first = call("run", "--rm", "--network", "none", "test", "true", check=False)
    if first.returncode and "cgroup" in first.stderr:
        pytest.skip(f"podman cannot run here: {first.stderr.strip()}")
    yield call
    call("rm", "--all", "--force", "--time", "0", check=False)
    call("pod", "rm", "--all", "--force", check=False)


def test_podman_runs(podman: Call) -> None:
    words = ("run", "--rm", "--network", "none")
    assert podman(*words, "--user", "12:34", "test", "id", "-u").stdout == "12\n"
    assert podman(*words, "-i", "test", "cat", input="through").stdout == "through"
    assert podman(*words, "test", "sh", "-c", "exit 42", check=False).returncode == 42
    missing = podman(*words, "test", "nosuch", check=False)
    assert missing.returncode == 127
    assert "'nosuch' not found" in missing.stderr
    status = podman(*words, "test", "cat", "/proc/self/status").stdout
    assert "Seccomp:\t2" in status
    assert "CapEff:\t00000000a80425fb" in status or "CapEff:\t00000000800405fb" in status
    text = podman(*words, "--read-only", "--tmpfs", "/tmp", "test",
                  "sh", "-c", "touch /x; touch /tmp/x && echo made", check=False)  # fmt: skip
    assert (text.stdout, "Read-only" in text.stderr) == ("made\n", True)


def test_podman_lives_with_a_container(podman: Call) -> None:
    script = 'echo up; trap "echo down; exit 3" TERM; while :; do sleep 0.1; done'
    podman("run", "-d", "--name", "c", "--network", "none", "test", "sh", "-c", script)
    until(lambda: "up" in podman("logs", "c").stdout)
    done = podman("exec", "-e", "A=b", "-w", "/tmp", "c", "sh", "-c", "echo $A $PWD; exit 7",
                  check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (7, "b /tmp\n")
    assert "/dev/pts/0" in podman("exec", "-t", "c", "sh", "-c", "ls -l /proc/self/fd/0").stdout
    assert podman("exec", "c", "nosuch", check=False).returncode == 127
    assert "sleep" in podman("top", "c").stdout
    paused = podman("pause", "c", check=False)
    if paused.returncode == 0:
        assert "Paused" in podman("ps", "-a", "--format", "{{.Status}}").stdout
        podman("unpause", "c")
    podman("stop", "--time", "60", "c")
    assert podman("logs", "c").stdout == "up\ndown\n"
    assert podman("inspect", "--format", "{{.State.ExitCode}}", "c").stdout == "3\n"
    podman("start", "c")
    podman("kill", "c")
    assert podman("wait", "c").stdout == "137\n"
    podman("rm", "c")


def test_podman_maps_ids(podman: Call) -> None:
    words = ("run", "--rm", "--network", "none", "--uidmap", "0:100000:65536",
             "--gidmap", "0:100000:65536")  # fmt: skip
    script = "cat /proc/self/uid_map; touch /x && ls -n /x"
    lines = podman(*words, "test", "sh", "-c", script).stdout.splitlines()
    assert lines[0].split() == ["0", "100000", "65536"]
    assert lines[1].split()[2:4] == ["0", "0"]


def test_podman_makes_pods(podman: Call) -> None:
    podman("pod", "create", "--name", "p", "--network", "none", "--hostname", "both",
           "--infra-image", "localhost/test", "--infra-command", "/bin/sleep 1000")  # fmt: skip
    podman("run", "-d", "--pod", "p", "test", "sleep", "1000")
    text = podman("run", "--rm", "--pod", "p", "test", "hostname").stdout
    assert text == "both\n"
    podman("pod", "rm", "--force", "--time", "0", "p")


def test_podman_builds(podman: Call, directory: Path) -> None:
    file = 'FROM localhost/test\nRUN echo built >/etc/built\nCMD ["/bin/cat", "/etc/built"]\n'
    (directory / "context").mkdir()
    words = ("build", "--network", "none", "--tag", "made", "-f", "-", str(directory / "context"))
    podman(*words, input=file)
    assert podman("run", "--rm", "--network", "none", "made").stdout == "built\n"


@pytest.fixture(scope="module")
def gvisor(directory: Path) -> None:
    """Skips where runsc starts nothing."""
    found, reason = try_runsc(directory)
    if not found:
        pytest.skip(f"class gvisor: {reason}")


def test_podman_mixes_classes(gvisor: None, podman: Call) -> None:
    words = ("run", "--rm", "--network", "none")
    inside = podman(*words, "test", "uname", "-r", runtime="tegu-oci-gvisor").stdout
    assert inside.strip() != platform.release()
    assert podman(*words, "test", "uname", "-r").stdout.strip() == platform.release()
    annotation = ("--annotation", "io.tegu.class=gvisor")
    assert podman(*words, *annotation, "test", "uname", "-r").stdout == inside
    done = podman(*words, "--annotation", "io.tegu.class=microvm", "test", "true", check=False)
    assert "microvm: this runtime makes containers and gVisor containers only" in done.stderr
    podman("run", "-d", "--name", "g", "--network", "none", *annotation, "test", "sh", "-c",
           "echo up; sleep 1000")  # fmt: skip
    until(lambda: podman("logs", "g").stdout == "up\n")
    done = podman("exec", "g", "sh", "-c", "uname -r; exit 6", check=False)
    assert (done.stdout, done.returncode) == (inside, 6)
    podman("rm", "-f", "-t", "0", "g")


@pytest.fixture(scope="module")
def ctr(directory: Path) -> Iterator[Call]:
    """A containerd of our own; `ctr run` with a root file system beside it."""
    if shutil.which("containerd") is None or shutil.which("ctr") is None:
        pytest.skip("containerd is not installed")
    at = directory / "containerd"
    at.mkdir()
    (at / "config.toml").write_text(
        f'version = 2\nroot = "{at}/root"\nstate = "{at}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{at}/c.sock"\n[ttrpc]\naddress = "{at}/t.sock"\n'
    )
    rootfs = at / "rootfs"
    with tarfile.open(fileobj=io.BytesIO(image())) as tar:
        tar.extractall(rootfs)
    with (at / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["containerd", "-c", str(at / "config.toml")], stdout=log, stderr=log
        )

    def call(*words: str, check: bool = True, **more: Any) -> Any:
        done = subprocess.run(
            ["ctr", "-a", f"{at}/c.sock", *words],
            **{"capture_output": True, "text": True, "timeout": 300, "check": False} | more,
        )
        if check:
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    try:
        until(lambda: call("version", check=False).returncode == 0)
        yield call
        call("tasks", "kill", "-s", "KILL", "c", check=False)
        call("tasks", "rm", "-f", "c", check=False)
        call("containers", "rm", "c", check=False)
    finally:
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(60)
        daemon.kill()
        subprocess.run(["umount", "--recursive", "--lazy", at], capture_output=True, check=False)


def test_containerd_runs(ctr: Call, directory: Path) -> None:
    runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", f"{directory}/tegu-oci")
    words = ("run", "--rm", *runtime, "--rootfs", f"{directory}/containerd/rootfs")
    first = ctr(*words, "a", "/bin/sh", "-c", "id -u; exit 9", check=False)
    if first.returncode == 1 and "cgroup" in first.stderr:
        pytest.skip(f"containerd cannot run here: {first.stderr.strip()}")
    assert (first.returncode, first.stdout) == (9, "0\n")
    missing = ctr(*words, "b", "nosuch", check=False)
    assert "'nosuch' not found in $PATH" in missing.stderr


def test_containerd_runs_gvisor_by_the_runtimes_name(
    gvisor: None, ctr: Call, directory: Path
) -> None:
    binary = f"{directory}/tegu-oci-gvisor"
    words = ("run", "--rm", "--runtime", "io.containerd.runc.v2", "--runc-binary", binary)
    words = (*words, "--rootfs", f"{directory}/containerd/rootfs")
    done = ctr(*words, "d", "/bin/sh", "-c", "uname -r; exit 9", check=False)
    if done.returncode == 1 and "cgroup" in done.stderr:
        pytest.skip(f"containerd cannot run here: {done.stderr.strip()}")
    assert done.returncode == 9, done.stderr
    assert done.stdout.strip() not in ("", platform.release())


def test_containerd_lives_with_a_container(ctr: Call, directory: Path) -> None:
    runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", f"{directory}/tegu-oci")
    words = ("run", "--detach", *runtime, "--rootfs", f"{directory}/containerd/rootfs")
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "capture_output": False}
    ctr(*words, "c", "/bin/sleep", "1000", **null)
    assert "RUNNING" in ctr("tasks", "ls").stdout
    done = ctr("tasks", "exec", "--exec-id", "e", "c", "/bin/sh", "-c", "echo in; exit 5",
               check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (5, "in\n")
    if ctr("tasks", "pause", "c", check=False).returncode == 0:
        assert "PAUSED" in ctr("tasks", "ls").stdout
        ctr("tasks", "resume", "c")
    ctr("tasks", "kill", "-s", "KILL", "c")
    until(lambda: "STOPPED" in ctr("tasks", "ls").stdout)
    ctr("tasks", "rm", "c", check=False)
    ctr("containers", "rm", "c")
