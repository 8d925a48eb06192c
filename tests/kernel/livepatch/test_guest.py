"""A live patch from source to a running kernel, in a guest of Tegu Linux with our own kernel.

The tests are one story: each goes on with the machine that the one before has left.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tegu.errors import (
    FetchError,
    LivepatchError,
    MachineError,
    UnsupportedError,
    VerifyError,
)
from tegu.kernel import load_recipe
from tegu.kernel.livepatch import Livepatch, build_livepatch, read_target
from tegu.lab import KernelMachine
from tegu.store import Store

HERE = Path(__file__).parent
HAMMER = HERE / "hammer.py"
PATCH = HERE / "patches/answers.patch"
SIG_ENFORCE = "/sys/module/module/parameters/sig_enforce"
# A program that meets the fault of the live patch, and is started at boot after the patch is there.
UNIT = """\
[Unit]
Description=Meets the fault of a live patch
[Service]
Type=oneshot
ExecStart=/usr/local/bin/tegu-crash /proc/cmdline
RemainAfterExit=yes
[Install]
WantedBy=multi-user.target
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def built(
    shared_store: Store, kernel_deb: Path, tmp_path_factory: pytest.TempPathFactory
) -> Livepatch:
    out = tmp_path_factory.mktemp("livepatch")
    try:
        return build_livepatch(
            [PATCH],
            "answers",
            read_target([kernel_deb.parent]),
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


def as_root(guest: KernelMachine, command: str) -> str:
    """Run a command that has to succeed; returns its output."""
    done = guest.run(command, root=True, timeout=900)
    assert done.exit_code == 0, done.stdout + done.stderr
    return done.stdout


def refused(guest: KernelMachine, command: str, exit_code: int) -> str:
    """Run a command that has to fail with `exit_code`; returns what it says."""
    done = guest.run(command, root=True, timeout=900)
    assert done.exit_code == exit_code, done.stdout + done.stderr
    return done.stderr


def status(guest: KernelMachine) -> dict[str, list[dict[str, object]]]:
    text = as_root(guest, "tegu kernel livepatch status --json")
    value: dict[str, list[dict[str, object]]] = json.loads(text)
    return value


def until(what: Callable[[], bool], seconds: float = 600) -> None:
    """Wait for `what` to hold; how long is no part of the question."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(1)


@contextmanager
def held(guest: KernelMachine) -> Iterator[None]:
    """Have a task `holder` in the guest that is stopped: the kernel cannot move it on."""
    as_root(guest, "cp /usr/bin/sleep /usr/local/bin/holder")
    as_root(guest, "systemd-run --quiet --unit=holder /usr/local/bin/holder infinity")
    until(lambda: guest.run("pgrep -x holder").exit_code == 0)
    as_root(guest, "pkill -STOP -x holder")
    stack = "cat /proc/$(pgrep -x holder)/stack"
    until(lambda: "do_signal_stop" in guest.run(stack, root=True).stdout)
    try:
        yield
    finally:
        as_root(guest, "pkill -KILL -x holder")
        until(lambda: guest.run("pgrep -x holder").exit_code == 1)
        guest.run("systemctl reset-failed holder", root=True)


def test_what_is_replaced(built: Livepatch) -> None:
    assert set(built.functions) == {
        "cmdline_proc_show",
        "c_next",
        "show_console_dev",
        "do_signal_stop",
        "__x64_sys_newuname",
        "__ia32_sys_newuname",
    }
    assert {"livepatched", "__do_sys_newuname"} <= set(built.added)
    assert {"shown", "uname_calls", "stops"} <= {n.partition(".")[0] for n in built.data}


def test_under_load(guest: KernelMachine, built: Livepatch) -> None:
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


def test_the_wrong_kernel(guest: KernelMachine, built: Livepatch, tmp_path: Path) -> None:
    data = built.module.read_bytes()
    release = built.release.encode()
    other = tmp_path / "livepatch_other.ko"
    other.write_bytes(data.replace(b"vermagic=" + release, b"vermagic=9" + release[1:]))
    guest.copy_in(other, "/tmp/livepatch_other.ko")
    said = refused(guest, "tegu kernel livepatch load /tmp/livepatch_other.ko", 7)
    assert f"is for the kernel 9{built.release[1:]}; this is {built.release}" in said
    # With module versions the kernel overlooks that line; the module itself does not.
    other.write_bytes(re.sub(rb"\0#(\d+ )", rb"\0%\1", data))  # uname -v is "#1 SMP ..."
    guest.copy_in(other, "/tmp/livepatch_other.ko")
    done = guest.run("insmod /tmp/livepatch_other.ko", root=True, timeout=300)
    assert done.exit_code != 0
    assert status(guest)["loaded"] == []


def test_a_task_that_stalls(guest: KernelMachine, built: Livepatch) -> None:
    with held(guest):
        said = refused(
            guest, "tegu kernel livepatch load answers --timeout 20", LivepatchError.exit_code
        )
        assert "the kernel is as it was" in said
        assert status(guest)["loaded"] == []
        assert "livepatched" not in guest.run("cat /proc/cmdline").stdout

        as_root(
            guest,
            "systemd-run --quiet --unit=loader --property=Type=oneshot --no-block "
            "/usr/bin/tegu kernel livepatch load answers --timeout 800",
        )

        def only_the_holder() -> bool:
            return {t["name"] for t in status(guest)["stalled"]} == {"holder"}

        until(only_the_holder)
        now = status(guest)
        assert [(p["name"], p["transition"]) for p in now["loaded"]] == [("answers", True)]
        (task,) = now["stalled"]
        stack = task["stack"]
        assert isinstance(stack, list)
        assert "do_signal_stop" in stack
        shown = as_root(guest, "tegu kernel livepatch status")
        assert re.search(r"answers\s+loading", shown), shown
        assert re.search(r"\d+\s+holder\s+\S+ < ", shown), shown
    # It is gone, and nothing stands in the way any more.
    until(lambda: not status(guest)["loaded"][0]["transition"])
    until(lambda: guest.run("systemctl is-active loader").stdout.strip() == "inactive")
    assert status(guest)["at_boot"] == "answers"
    as_root(guest, "tegu kernel livepatch revert answers")


def test_by_force(guest: KernelMachine, built: Livepatch) -> None:
    with held(guest):
        as_root(guest, "tegu kernel livepatch load answers --timeout 20 --force")
        (loaded,) = status(guest)["loaded"]
        assert (loaded["enabled"], loaded["transition"]) == (True, False)
        assert "livepatched" in guest.run("cat /proc/cmdline").stdout
    # The holder ran the kernel's own function: nothing keeps the module.
    as_root(guest, "tegu kernel livepatch revert answers")
    assert "livepatch_answers" not in guest.run("cat /proc/modules").stdout

    as_root(guest, "tegu kernel livepatch load answers")
    with held(guest):
        # Now it runs the module's: the way back is barred, and forced the module has to stay.
        said = refused(
            guest, "tegu kernel livepatch revert answers --timeout 20", LivepatchError.exit_code
        )
        assert "answers is still run by" in said
        done = guest.run(
            "tegu kernel livepatch revert answers --timeout 20 --force", root=True, timeout=900
        )
        assert done.exit_code == 0, done.stderr
        assert "livepatch_answers: it stays in memory until the next boot" in done.stderr
        assert status(guest)["loaded"] == []
        assert "livepatched" not in guest.run("cat /proc/cmdline").stdout
        assert "livepatch_answers" in guest.run("cat /proc/modules").stdout
    said = refused(guest, "tegu kernel livepatch load answers", LivepatchError.exit_code)
    assert "the module livepatch_answers cannot be unloaded" in said
    assert "`tegu kernel livepatch enable` has it loaded then" in said


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def signed(module: bytes, directory: Path) -> bytes:
    """Sign a module with a key that nobody knows, as the kernel's scripts/sign-file.c would."""
    key, certificate = directory / "key.pem", directory / "cert.pem"
    openssl(
        *("req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
        *("-subj", "/CN=a stranger", "-keyout", key, "-out", certificate),
    )
    content, message = directory / "content", directory / "message"
    content.write_bytes(module)
    openssl(
        *("cms", "-sign", "-binary", "-noattr", "-nocerts", "-nosmimecap", "-md", "sha256"),
        *("-outform", "DER", "-signer", certificate, "-inkey", key),
        *("-in", content, "-out", message),
    )
    signature = message.read_bytes()
    # struct module_signature (include/linux/module_signature.h): PKEY_ID_PKCS7, the length.
    tail = bytes([0, 0, 2, 0, 0, 0, 0, 0]) + len(signature).to_bytes(4, "big")
    return module + signature + tail + b"~Module signature appended~\n"


def test_it_survives_a_restart(guest: KernelMachine, built: Livepatch) -> None:
    as_root(guest, "tegu kernel livepatch enable answers")
    # It has done what it does for a new machine, and takes half of an emulated boot.
    as_root(guest, "touch /etc/cloud/cloud-init.disabled")
    guest.reboot(timeout=900)
    now = status(guest)
    assert [p["name"] for p in now["loaded"]] == ["answers"]
    assert now["blocked"] is None
    assert "livepatched" in guest.run("cat /proc/consoles").stdout


def test_a_crash_is_not_repeated(guest: KernelMachine, built: Livepatch) -> None:
    """A live patch that brings the machine down at boot is not loaded at the boot after that."""
    guest.run("cat > /tmp/tegu-crash.service", stdin=UNIT)
    as_root(guest, "cp /usr/bin/cat /usr/local/bin/tegu-crash")
    as_root(guest, "cp /tmp/tegu-crash.service /etc/systemd/system/")
    as_root(guest, "systemctl enable tegu-crash.service && sync")
    said = len(guest.console())
    with suppress(MachineError):  # it may be gone before it has answered
        guest.run("systemctl --no-block reboot", root=True)
    guest.ssh.close()
    # It crashes, and starts again by itself.
    crash = r"Kernel panic - not syncing: the live patch has a fault[\s\S]*Linux version"
    guest.wait_for_console(crash, after=said, timeout=1800)
    guest.wait_for_ssh(900)
    now = status(guest)
    assert now["loaded"] == []
    assert now["blocked"] == "answers"
    assert (
        "the machine did not last with it"
        in guest.run("systemctl status --no-pager -n 20 tegu-livepatch.service", root=True).stdout
    )
    # The program that it fell over runs; so it does at the boot after that.
    as_root(guest, "systemctl start tegu-crash.service")
    as_root(guest, "systemctl disable tegu-crash.service")
    # Who asks for it has it tried again.
    as_root(guest, "tegu kernel livepatch load answers")
    now = status(guest)
    assert [p["name"] for p in now["loaded"]] == ["answers"]
    assert now["blocked"] is None
    as_root(guest, f"dpkg -r livepatch-{built.release}-answers")
    assert status(guest)["loaded"] == []


def test_signatures_are_enforced(guest: KernelMachine, built: Livepatch, tmp_path: Path) -> None:
    """Nothing unsigned, and nothing signed by a stranger, gets in where signatures are demanded.

    Last, as the machine cannot go back, and nothing loaded may be left from before.
    """
    guest.copy_in(built.module, "/tmp/livepatch_answers.ko")
    foreign = tmp_path / "livepatch_foreign.ko"
    foreign.write_bytes(signed(built.module.read_bytes(), tmp_path))
    guest.copy_in(foreign, "/tmp/livepatch_foreign.ko")
    # It can be switched on while the machine runs, and not off again (kernel/module/signing.c).
    as_root(guest, f"echo 1 > {SIG_ENFORCE}")
    said = refused(guest, "tegu kernel livepatch load /tmp/livepatch_answers.ko", 7)
    assert "is not signed, and this kernel loads only signed modules" in said
    assert "--sign-key" in said
    said = refused(guest, "tegu kernel livepatch load /tmp/livepatch_foreign.ko", 7)
    assert "has a signature that this kernel rejects" in said
    log = as_root(guest, "dmesg")
    assert "Loading of module with unavailable key is rejected" in log
    # The kernel itself says so, not only the program.
    for name in ("answers", "foreign"):
        done = guest.run(f"insmod /tmp/livepatch_{name}.ko", root=True, timeout=300)
        assert done.exit_code != 0
        assert re.search(r"Key was rejected|Required key not available", done.stderr), done.stderr
    now = status(guest)
    assert now["loaded"] == []
    assert now["at_boot"] is None
