"""Our kernel in a guest of Tegu Linux, started without an initrd; nothing is compiled here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tegu.kernel import load_recipe
from tegu.lab import KernelMachine

ROOT = Path(__file__).parents[2]
FACILITIES = ROOT / "distro/files/kernel-test/usr/lib/tegu-kernel-test/facilities.py"
SELFTEST = "tools/testing/selftests/net/tcp_tw_timeout.py"
# All but kexec and livepatch, which need files of the kernel's packages in the guest: they are in
# distro/plans/kernel.toml.
HERE = (
    *("psi", "io-cost", "io-latency", "bfq", "cgroup-writeback", "namespaces", "fentry", "core"),
    *("kprobe", "xdp", "sched-ext", "erofs", "dm-verity", "bbr", "io-uring", "idle-pages"),
)
# One module of each kind that distro/kernel/config leaves out of the kernel's own image.
MODULES = ("bfq", "loop", "overlay", "isofs", "xfs", "tcp_diag", "nf_tables", "wireguard")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_it_is_ours(guest: KernelMachine) -> None:
    assert guest.run("uname -r").stdout.strip() == load_recipe().release


def test_modules(guest: KernelMachine) -> None:
    """Each is found, with what it needs, and taken by the kernel."""
    for name in MODULES:
        done = guest.run(f"modprobe {name}", root=True, timeout=300)
        assert done.exit_code == 0, f"{name}: {done.stderr}"


def test_facilities(guest: KernelMachine) -> None:
    guest.copy_in(FACILITIES, "/tmp/facilities.py")
    done = guest.run(f"python3 /tmp/facilities.py {' '.join(HERE)}", root=True, timeout=900)
    assert "not ok" not in done.stdout, done.stdout
    assert f"ok {len(HERE)} " in done.stdout, done.stdout + done.stderr


def test_time_wait(guest: KernelMachine, tmp_path: Path) -> None:
    (patch,) = (p for p in load_recipe().patches if "tcp_tw_timeout" in p.test)
    git = ["git", "apply", f"--include={SELFTEST}", str(patch.path)]
    subprocess.run(git, cwd=tmp_path, check=True)
    guest.copy_in(tmp_path / SELFTEST, "/tmp/tcp_tw_timeout.py")
    done = guest.run("python3 /tmp/tcp_tw_timeout.py 2000", root=True, timeout=900)
    assert "not ok" not in done.stdout, done.stdout
    assert "ok 10 " in done.stdout, done.stdout + done.stderr
