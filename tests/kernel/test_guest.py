"""Our kernel in a guest of Tegu Linux, started without an initrd; nothing is compiled here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tegu.kernel import last_built, load_recipe
from tegu.lab import QemuMachine, QemuOptions
from tegu.lab.seed import Seed
from tegu.store import Store

ROOT = Path(__file__).parents[2]
FACILITIES = ROOT / "distro/files/kernel-test/usr/lib/tegu-kernel-test/facilities.py"
SELFTEST = "tools/testing/selftests/net/tcp_tw_timeout.py"
# Those that need no modules and no files of the kernel's package in the guest.
BUILT_IN = (
    *("psi", "io-cost", "io-latency", "bfq", "cgroup-writeback", "namespaces", "fentry", "core"),
    *("kprobe", "xdp", "sched-ext", "erofs", "dm-verity", "bbr", "io-uring", "idle-pages"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guest(
    shared_store: Store, tegu_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QemuMachine]:
    named = os.environ.get("TEGU_KERNEL_DEB")
    deb = Path(named) if named else last_built(shared_store, load_recipe().release)
    if deb is None:
        pytest.skip("no kernel: neither TEGU_KERNEL_DEB nor one that `tegu kernel build` has made")
    tree = tmp_path_factory.mktemp("kernel")
    subprocess.run(["dpkg-deb", "-x", str(deb), str(tree)], check=True)
    (image,) = (tree / "boot").glob("vmlinuz-*")
    options = QemuOptions(
        image=tegu_image,
        kernel=image,
        append="root=PARTLABEL=root rw console=ttyS0,115200n8 no_timer_check",
        memory=1 << 30,
        cpus=2,
        seed=Seed(hostname="kernel"),
    )
    with QemuMachine(options) as machine:
        machine.wait_for_ssh(900)
        yield machine


def test_it_is_ours(guest: QemuMachine) -> None:
    assert guest.run("uname -r").stdout.strip() == load_recipe().release


def test_facilities(guest: QemuMachine) -> None:
    guest.copy_in(FACILITIES, "/tmp/facilities.py")
    done = guest.run(f"python3 /tmp/facilities.py {' '.join(BUILT_IN)}", root=True, timeout=900)
    assert "not ok" not in done.stdout, done.stdout
    assert f"ok {len(BUILT_IN)} " in done.stdout, done.stdout + done.stderr


def test_time_wait(guest: QemuMachine, tmp_path: Path) -> None:
    (patch,) = (p for p in load_recipe().patches if "tcp_tw_timeout" in p.test)
    git = ["git", "apply", f"--include={SELFTEST}", str(patch.path)]
    subprocess.run(git, cwd=tmp_path, check=True)
    guest.copy_in(tmp_path / SELFTEST, "/tmp/tcp_tw_timeout.py")
    done = guest.run("python3 /tmp/tcp_tw_timeout.py 2000", root=True, timeout=900)
    assert "not ok" not in done.stdout, done.stdout
    assert "ok 10 " in done.stdout, done.stdout + done.stderr
