"""A live patch from source to a running kernel, in a guest of Tegu Linux with our own kernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tegu.errors import FetchError, UnsupportedError, VerifyError
from tegu.kernel import last_built, load_recipe
from tegu.kernel.livepatch import Livepatch, build_livepatch, read_target
from tegu.lab import QemuMachine, QemuOptions
from tegu.lab.seed import Seed
from tegu.store import Store

HERE = Path(__file__).parent
HAMMER = HERE / "hammer.py"
PATCH = HERE / "patches/answers.patch"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packages(shared_store: Store) -> Path:
    """The directory with the packages of a kernel that was built on this machine."""
    if named := os.environ.get("TEGU_KERNEL_DEB"):
        return Path(named).parent
    deb = last_built(shared_store, load_recipe().release)
    if deb is None:
        pytest.skip("no kernel: neither TEGU_KERNEL_DEB nor one that `tegu kernel build` has made")
    return deb.parent


@pytest.fixture(scope="module")
def built(
    shared_store: Store, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Livepatch:
    out = tmp_path_factory.mktemp("livepatch")
    try:
        return build_livepatch(
            [PATCH],
            "answers",
            read_target([packages]),
            load_recipe(),
            shared_store,
            out,
            offline=True,
        )
    except (FetchError, UnsupportedError) as e:
        pytest.skip(f"no live patch can be built here: {e.message}")
    except VerifyError as e:
        if "configuration is not the kernel's" not in e.message:
            raise
        pytest.skip(f"the kernel in the store is of another recipe: {e.message}")


@pytest.fixture(scope="module")
def guest(
    packages: Path, tegu_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QemuMachine]:
    tree = tmp_path_factory.mktemp("kernel")
    (deb,) = packages.glob(f"linux-image-{load_recipe().release}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(deb), str(tree)], check=True)
    (image,) = (tree / "boot").glob("vmlinuz-*")
    options = QemuOptions(
        image=tegu_image,
        kernel=image,
        append="root=PARTLABEL=root rw console=ttyS0,115200n8 no_timer_check",
        memory=1 << 30,
        cpus=2,
        seed=Seed(hostname="livepatch"),
    )
    with QemuMachine(options) as machine:
        machine.wait_for_ssh(900)
        yield machine


def as_root(guest: QemuMachine, command: str) -> str:
    """Run a command that has to succeed; returns its output."""
    done = guest.run(command, root=True, timeout=900)
    assert done.exit_code == 0, done.stdout + done.stderr
    return done.stdout


def status(guest: QemuMachine) -> dict[str, list[dict[str, object]]]:
    text = as_root(guest, "tegu kernel livepatch status --json")
    value: dict[str, list[dict[str, object]]] = json.loads(text)
    return value


def test_what_is_replaced(built: Livepatch) -> None:
    assert set(built.functions) == {
        "cmdline_proc_show",
        "c_next",
        "show_console_dev",
        "__x64_sys_newuname",
        "__ia32_sys_newuname",
    }
    assert {"livepatched", "__do_sys_newuname"} <= set(built.added)
    assert {"shown", "uname_calls"} <= set(built.data)


def test_under_load(guest: QemuMachine, built: Livepatch) -> None:
    guest.copy_in(HAMMER, "/tmp/hammer.py")
    guest.copy_in(built.package, "/tmp/answers.deb")
    as_root(
        guest,
        "systemd-run --quiet --unit=hammer /usr/bin/python3 /tmp/hammer.py /tmp/hammer.json",
    )
    # Its maintainer script loads it.
    as_root(guest, "dpkg -i /tmp/answers.deb")
    (loaded,) = status(guest)["loaded"]
    assert (loaded["name"], loaded["enabled"], loaded["transition"]) == ("answers", True, False)
    assert "livepatched" in guest.run("cat /proc/cmdline").stdout
    assert "livepatched" in guest.run("cat /proc/consoles").stdout
    as_root(guest, "tegu kernel livepatch revert answers")
    assert status(guest)["loaded"] == []
    assert "livepatched" not in guest.run("cat /proc/cmdline /proc/consoles").stdout
    assert "livepatch_answers" not in guest.run("cat /proc/modules").stdout
    as_root(guest, "systemctl stop hammer")
    answers = json.loads(guest.run("cat /tmp/hammer.json").stdout)
    print(answers)
    assert answers["wrong"] == []
    assert answers["old"] > 100
    assert answers["new"] > 100


def test_the_wrong_kernel(guest: QemuMachine, built: Livepatch, tmp_path: Path) -> None:
    data = built.module.read_bytes()
    release = built.release.encode()
    other = tmp_path / "livepatch_other.ko"
    other.write_bytes(data.replace(b"vermagic=" + release, b"vermagic=9" + release[1:]))
    guest.copy_in(other, "/tmp/livepatch_other.ko")
    done = guest.run("tegu kernel livepatch load /tmp/livepatch_other.ko", root=True, timeout=300)
    assert done.exit_code == 7
    assert f"is for the kernel 9{built.release[1:]}; this is {built.release}" in done.stderr
    # With module versions the kernel overlooks that line; the module itself does not.
    other.write_bytes(re.sub(rb"\0#(\d+ )", rb"\0%\1", data))  # uname -v is "#1 SMP ..."
    guest.copy_in(other, "/tmp/livepatch_other.ko")
    done = guest.run("insmod /tmp/livepatch_other.ko", root=True, timeout=300)
    assert done.exit_code != 0
    assert status(guest)["loaded"] == []


def test_it_survives_a_restart(guest: QemuMachine, built: Livepatch) -> None:
    as_root(guest, "tegu kernel livepatch load answers")
    guest.reboot(timeout=900)
    (loaded,) = status(guest)["loaded"]
    assert loaded["name"] == "answers"
    assert "livepatched" in guest.run("cat /proc/consoles").stdout
    as_root(guest, f"dpkg -r livepatch-{built.release}-answers")
    assert status(guest)["loaded"] == []
