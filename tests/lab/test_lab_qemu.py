"""Real machines without an operating system: started, looked at, ended, with nothing left."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tegu.emulator.arch import MACHINES, facts_for
from tegu.emulator.guests import ANSWER
from tegu.errors import MachineError, UnsupportedError, UsageError
from tegu.lab.boot import boot, stop
from tegu.lab.disk import inspect
from tegu.lab.firmware import find_uefi
from tegu.lab.options import BUSES, Forward, QemuOptions
from tegu.lab.qemu import QemuMachine
from tegu.lab.qmp import execute, machine_status
from tegu.lab.registry import Registry
from tegu.lab.seed import Seed


@pytest.fixture(autouse=True)
def private_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where machines keep their files; short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as base:
        monkeypatch.setenv("TMPDIR", base)
        yield Path(base)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk with a boot sector that does nothing."""
    path = tmp_path / "empty.raw"
    with path.open("wb") as f:
        f.write((b"\xfa\xf4\xeb\xfd").ljust(510, b"\0") + b"\x55\xaa")  # cli; hlt; jump back
        f.truncate(16 << 20)
    return path


def options(image: Path, **changes: Any) -> QemuOptions:
    base = QemuOptions(
        image=image, memory=64 << 20, cpus=1, accelerator="tcg", firmware="bios", network="none"
    )
    return replace(base, **changes)


def nothing_left(base: Path, registry: Registry) -> bool:
    return not list(base.glob("tegu-*")) and registry.all() == []


@pytest.mark.parametrize("name", sorted(MACHINES))
@pytest.mark.parametrize("bus", BUSES)
@pytest.mark.parametrize("firmware", ["uefi", "bios"])
def test_every_kind_of_machine_is_accepted_by_qemu(
    name: Any, bus: Any, firmware: Any, image: Path, registry: Registry, private_tmp: Path,
    need: Callable[[str], str],
) -> None:  # fmt: skip
    facts = MACHINES[name]
    need(facts.qemu)
    if firmware == "uefi":
        try:
            find_uefi(facts)
        except UnsupportedError as e:
            pytest.skip(e.message)
    wanted = options(
        image, architecture=name, bus=bus, firmware=firmware, network="user", memory=128 << 20,
        seed=Seed(hostname="x"),
    )  # fmt: skip
    if firmware == "bios" and not facts.bios:
        with pytest.raises(UnsupportedError, match="have no BIOS"):
            QemuMachine(wanted, registry=registry).start()
    else:
        with QemuMachine(wanted, registry=registry) as machine:
            assert machine_status(machine.record.monitor) == "running"
            assert machine.alive()
            assert machine.record.ssh_port
            blocks = execute(machine.record.monitor, "query-named-block-nodes")
            assert {"disk", "seed"} <= {b["node-name"] for b in blocks}
    assert nothing_left(private_tmp, registry)


@pytest.mark.parametrize("network", ["user", "isolated"])
def test_no_two_machines_get_one_port(
    image: Path, registry: Registry, qemu: object, network: Any
) -> None:
    wanted = options(image, network=network)
    with QemuMachine(wanted, registry=registry) as a, QemuMachine(wanted, registry=registry) as b:
        assert a.record.ssh_port != b.record.ssh_port
        assert a.name != b.name
        assert {r.name for r in registry.all()} == {a.name, b.name}


def test_instruction_counting_and_direct_kernel(
    talker: QemuOptions, registry: Registry, private_tmp: Path
) -> None:
    with QemuMachine(replace(talker, icount=True), registry=registry) as machine:
        assert ANSWER in machine.wait_for_console(ANSWER, timeout=60)
        assert machine.record.cpus == 1
        with pytest.raises(
            MachineError, match=r"did not say 'never'.*last on the console: tegu: g"
        ):
            machine.wait_for_console("never", timeout=0.5)
    assert nothing_left(private_tmp, registry)


def test_a_machine_that_never_answers_names_its_last_words(
    talker: QemuOptions, registry: Registry
) -> None:
    with QemuMachine(replace(talker, seed=Seed()), registry=registry) as machine:
        machine.wait_for_console(ANSWER, timeout=60)
        with pytest.raises(MachineError) as caught:
            machine.wait_for_ssh(1)
        assert caught.value.message.startswith("talker did not answer on SSH within 1 s (")
        assert caught.value.message.endswith("; last on the console: tegu: guest runs")


def test_a_boot_that_comes_to_nothing_is_cleaned_up(
    talker: QemuOptions, registry: Registry, private_tmp: Path
) -> None:
    with pytest.raises(MachineError, match="did not answer on SSH within 1 s"):
        boot(replace(talker, seed=Seed()), timeout=1, registry=registry)
    assert nothing_left(private_tmp, registry)


@pytest.mark.parametrize("operation", ["run", "wait", "copy", "console", "reboot"])
def test_a_machine_that_dies_is_noticed_at_once(
    talker: QemuOptions, registry: Registry, operation: str, tmp_path: Path
) -> None:
    with QemuMachine(replace(talker, seed=Seed()), registry=registry) as machine:
        machine.wait_for_console(ANSWER, timeout=60)
        machine.process.kill()
        work: dict[str, Callable[[], object]] = {
            "run": lambda: machine.run("true", timeout=3600),
            "wait": lambda: machine.wait_for_ssh(3600),
            "copy": lambda: machine.copy_out("/etc/motd", tmp_path / "motd"),
            "console": lambda: machine.wait_for_console("never", timeout=3600),
            "reboot": lambda: machine.reboot(3600),
        }
        with pytest.raises(
            MachineError, match=r"talker has died \(last on the console: tegu: guest"
        ):
            work[operation]()


def test_a_panic_is_noticed_at_once(talker: QemuOptions, registry: Registry) -> None:
    with QemuMachine(replace(talker, seed=Seed()), registry=registry) as machine:
        machine.wait_for_console(ANSWER, timeout=60)
        with machine.record.console_log.open("a") as f:
            f.write("[  1.5] Kernel panic - not syncing: VFS: no root\r\n")
        with pytest.raises(
            MachineError, match="talker has crashed: Kernel panic - not syncing: VFS"
        ):
            machine.wait_for_ssh(3600)
        # A machine that comes back by itself (kernel.panic) is as good as any.
        with machine.record.console_log.open("a") as f:
            f.write("[    0.000000] Linux version 6.12.107-tegu\r\n")
        with pytest.raises(MachineError, match="did not answer on SSH"):
            machine.wait_for_ssh(0)
        with machine.record.console_log.open("a") as f:
            f.write(
                "[    8.1] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\r\n"
                "[    8.1] RIP: 0010:netif_rx_internal+0x42/0x120\r\n"
                "[    8.2] Kernel panic - not syncing: Fatal exception in interrupt\r\n"
                "[    8.3] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---"
            )
        with pytest.raises(MachineError, match=r"in interrupt \(Oops: int3.* in netif_rx_int"):
            machine.wait_for_ssh(3600)


def test_a_port_that_is_taken(
    image: Path, registry: Registry, qemu: object, private_tmp: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wanted = options(image, network="user", forwards=(Forward(port, 80),))
        with pytest.raises(
            MachineError, match="QEMU did not start: Could not set up host"
        ) as caught:
            QemuMachine(wanted, registry=registry).start()
        assert str(port) in caught.value.message
        assert "another program uses that port" in (caught.value.hint or "")
    assert nothing_left(private_tmp, registry)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": 1 << 46}, "QEMU did not start: .*(memory|RAM|RAM size)"),
        ({"extra": ("-device", "no-such-thing")}, "QEMU did not start: .*no-such-thing"),
    ],
)
def test_qemus_own_reason_is_told(
    image: Path, registry: Registry, qemu: object, private_tmp: Path, changes: Any, said: str
) -> None:
    with pytest.raises(MachineError, match=said) as caught:
        QemuMachine(options(image, **changes), registry=registry).start()
    assert "\n" not in caught.value.message
    assert nothing_left(private_tmp, registry)


def test_a_bad_image_starts_nothing(
    tmp_path: Path, registry: Registry, qemu: object, private_tmp: Path
) -> None:
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "text", tmp_path / "none", tmp_path):
        with pytest.raises(UsageError):
            QemuMachine(options(path), registry=registry).start()
    assert nothing_left(private_tmp, registry)


def test_missing_firmware_is_named(
    image: Path,
    registry: Registry,
    qemu: object,
    monkeypatch: pytest.MonkeyPatch,
    private_tmp: Path,
) -> None:
    monkeypatch.setattr(find_uefi, "__defaults__", ((Path("/none"),),))
    with pytest.raises(UnsupportedError, match="no UEFI firmware") as caught:
        QemuMachine(options(image, firmware="uefi"), registry=registry).start()
    assert facts_for(None).firmware_package in (caught.value.hint or "")
    assert nothing_left(private_tmp, registry)


def test_missing_qemu_is_named(
    image: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/none")
    monkeypatch.setattr("tegu.process.shutil.which", lambda *_, **__: None)
    with pytest.raises(UnsupportedError, match=r"qemu-system-.* is not installed"):
        QemuMachine(options(image), registry=registry).start()


def test_kvm_on_demand_is_refused_where_it_does_not_work(
    image: Path, registry: Registry, qemu: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tegu.emulator.kvm import Kvm
    from tegu.lab import qemu as module

    monkeypatch.setattr(module, "check_kvm", lambda *_: Kvm(True, False, "it hangs"))
    with pytest.raises(UnsupportedError, match="KVM: it hangs"):
        QemuMachine(options(image, accelerator="kvm"), registry=registry).start()
    with QemuMachine(options(image, accelerator="auto"), registry=registry) as machine:
        assert machine.record.accelerator == "tcg"
        assert machine.notice == "KVM is present but broken (it hangs): using emulation"


def test_a_machine_without_network_has_no_ssh(
    image: Path, registry: Registry, qemu: object
) -> None:
    with QemuMachine(options(image), registry=registry) as machine:
        with pytest.raises(MachineError, match="has no network"):
            machine.run("true")
        with pytest.raises(MachineError, match="has been started already"):
            machine.start()


def test_a_machine_in_the_background_is_found_and_stopped(
    image: Path, registry: Registry, qemu: object, private_tmp: Path
) -> None:
    up = boot(options(image, name="web"), wait=False, registry=registry)
    assert [r.name for r in registry.all()] == ["web"]
    with pytest.raises(MachineError, match="runs already"):
        boot(options(image, name="web"), wait=False, registry=registry)
    again = QemuMachine.attach("web", registry=registry)
    assert again.process == up.record.process
    with again:
        pass  # to look at it does not end it
    assert again.alive()
    # This machine has no operating system that would heed the power button.
    stopped = stop("web", timeout=0.5, registry=registry)
    assert not stopped.clean
    assert not again.process.alive()
    assert nothing_left(private_tmp, registry)


def test_changes_are_kept_only_on_demand(
    image: Path, registry: Registry, qemu: object, private_tmp: Path, tmp_path: Path
) -> None:
    kept = options(image, name="pet", persist=True, firmware="bios", seed=Seed(user="bob"))
    with QemuMachine(kept, registry=registry) as machine:
        home = machine.record.home
        assert home is not None
    assert nothing_left(private_tmp, registry)
    layer = home / "disk.qcow2"
    assert inspect(layer, partitioned=False).backing == image.resolve()
    first = (home / "seed.img").read_bytes()
    with QemuMachine(replace(kept, seed=Seed(user="eve")), registry=registry) as machine:
        assert machine.record.user == "bob"  # whom the first start made
    other = tmp_path / "other.raw"
    other.write_bytes(image.read_bytes())
    with pytest.raises(UsageError, match="was made from"):
        QemuMachine(replace(kept, image=other), registry=registry).start()
    with QemuMachine(kept, registry=registry):
        assert (home / "seed.img").read_bytes() == first  # the same instance as ever
    assert layer.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_boot_leaves_nothing(
    talker: QemuOptions, tmp_path: Path, private_tmp: Path, number: signal.Signals
) -> None:
    script = (
        "import sys; from pathlib import Path; from tegu.lab.boot import boot\n"
        "from tegu.lab.options import QemuOptions; from tegu.lab.registry import Registry\n"
        "from tegu.lab.seed import Seed\n"
        "boot(QemuOptions(kernel=Path(sys.argv[1]), memory=64 << 20, cpus=1, seed=Seed(),\n"
        "     accelerator='tcg'), timeout=600, registry=Registry(Path(sys.argv[2])),\n"
        "     on_event=lambda e: print(e, flush=True))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(talker.kernel), str(tmp_path / "r")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    line = child.stdout.readline()
    assert "waiting for SSH" in line
    registry = Registry(tmp_path / "r")
    process = registry.all()[0].process
    assert process is not None
    assert process.alive()
    child.send_signal(number)
    child.send_signal(number)  # once more, while it is cleaning up
    _, errors = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert not process.alive()
    assert nothing_left(private_tmp, registry)


def test_a_killed_owner_leaves_a_machine_that_the_next_look_ends(
    talker: QemuOptions, tmp_path: Path, private_tmp: Path
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tegu.lab.qemu import QemuMachine\n"
        "from tegu.lab.options import QemuOptions; from tegu.lab.registry import Registry\n"
        "QemuMachine(QemuOptions(kernel=Path(sys.argv[1]), memory=64 << 20, cpus=1,\n"
        "  accelerator='tcg'), registry=Registry(Path(sys.argv[2]))).start()\n"
        "print('up', flush=True); time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(talker.kernel), str(tmp_path / "r")],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    registry = Registry(tmp_path / "r")
    process = registry.all()[0].process
    assert process is not None
    child.kill()
    child.communicate()
    assert registry.all() == []
    assert process.wait(10)
    assert nothing_left(private_tmp, registry)
