"""Options that fit together, and the command line that they become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tegu.emulator.arch import MACHINES, MachineFacts
from tegu.emulator.binary import QemuBinary
from tegu.errors import UsageError
from tegu.lab.command import Parts, command_line
from tegu.lab.disk import Disk
from tegu.lab.flags import machine_options
from tegu.lab.options import BUSES, Forward, QemuOptions
from tegu.lab.registry import MachineRecord

IMAGE = Path("/images/a,b.qcow2")


def words(
    options: QemuOptions,
    facts: MachineFacts = MACHINES["x86-64"],
    *,
    accelerator: str = "tcg",
    version: tuple[int, ...] = (7, 2, 0),
) -> list[str]:
    record = MachineRecord("m", Path("/run/m"), None)
    disk = Disk(Path("/run/m/disk.qcow2"), "qcow2", 1) if options.image else None
    parts = Parts(accelerator, disk, Path("/run/m/seed.img"), Path("/fw/code"), Path("/run/m/vars"))
    return command_line(options, facts, QemuBinary("/usr/bin/qemu", version), record, parts)


def after(line: list[str], flag: str) -> list[str]:
    return [line[i + 1] for i, word in enumerate(line) if word == flag]


def test_nothing_of_one_architecture_leaks_into_the_other() -> None:
    line = words(QemuOptions(image=IMAGE), MACHINES["arm64"])
    assert after(line, "-machine") == ["virt"]
    assert not [w for w in line if any(x in w for x in ("q35", "ttyS0", "x86", "isa-", "cx16"))]


def test_emulation_on_qemu_7_leaves_cmpxchg16b_out() -> None:
    facts = MACHINES["x86-64"]
    assert after(words(QemuOptions(image=IMAGE)), "-cpu") == ["max,-cx16"]
    assert facts.emulated_cpu((8, 0, 0)) == "max"
    assert after(words(QemuOptions(image=IMAGE), accelerator="kvm"), "-cpu") == ["host"]


def test_instruction_counting_is_one_thread_and_one_cpu() -> None:
    line = words(QemuOptions(image=IMAGE, icount=True, cpus=4))
    assert after(line, "-icount") == ["shift=2,sleep=off"]
    assert after(line, "-accel") == ["tcg,thread=single"]
    assert after(line, "-smp") == ["1"]


def test_cpus_take_turns_where_qemu_is_too_old_for_code_that_changes() -> None:
    facts, image = MACHINES["x86-64"], QemuOptions(image=IMAGE, cpus=2)
    line = words(image)
    assert (after(line, "-accel"), after(line, "-smp")) == (["tcg,thread=single"], ["2"])
    assert after(words(image, facts, version=(8, 1, 0)), "-accel") == ["tcg,thread=multi"]
    assert after(words(image, accelerator="kvm"), "-accel") == ["kvm"]
    assert after(words(QemuOptions(image=IMAGE, cpus=1)), "-accel") == ["tcg,thread=multi"]


@pytest.mark.parametrize("bus", BUSES)
def test_disk_and_seed_are_on_the_bus_asked_for(bus: Any) -> None:
    line = words(QemuOptions(image=IMAGE, bus=bus))
    kind = {"virtio-blk": "virtio-blk-pci", "nvme": "nvme", "virtio-scsi": "scsi-hd"}[bus]
    devices = after(line, "-device")
    disk = next(d for d in devices if "drive=disk" in d)
    assert disk.startswith(kind)
    assert "bootindex=0" in disk
    assert any("drive=seed" in d and "bootindex" not in d for d in devices)
    nodes = {b["node-name"]: b for b in map(json.loads, after(line, "-blockdev"))}
    assert nodes["disk"]["file"]["filename"] == "/run/m/disk.qcow2"
    assert nodes["seed"]["read-only"] is True


def test_flushes_count_only_where_the_disk_is_kept() -> None:
    def no_flush(options: QemuOptions) -> bool:
        nodes = map(json.loads, after(words(options), "-blockdev"))
        return next(bool(n["cache"]["no-flush"]) for n in nodes if n["node-name"] == "disk")

    assert no_flush(QemuOptions(image=IMAGE))
    assert not no_flush(QemuOptions(image=IMAGE, name="m", persist=True))


def test_networks() -> None:
    options = QemuOptions(image=IMAGE, forwards=(Forward(8080, 80),))
    backend = after(words(options), "-netdev")[0]
    assert "hostfwd=tcp:127.0.0.1:0-:22" in backend
    assert "hostfwd=tcp:127.0.0.1:8080-:80" in backend
    assert "restrict" not in backend
    assert "restrict=on" in after(words(replace(options, network="isolated")), "-netdev")[0]
    line = words(QemuOptions(image=IMAGE, network="none"))
    assert after(line, "-nic") == ["none"]
    assert not after(line, "-netdev")


def test_a_kernel_is_booted_directly() -> None:
    line = words(QemuOptions(kernel=Path("/k"), initrd=Path("/i"), append="root=/dev/vda1"))
    assert after(line, "-kernel") == ["/k"]
    assert after(line, "-initrd") == ["/i"]
    assert after(line, "-append") == ["root=/dev/vda1"]
    assert after(words(QemuOptions(kernel=Path("/k"))), "-append") == ["console=ttyS0"]


def test_commas_in_paths_are_doubled() -> None:
    record = MachineRecord("m", Path("/run/a,b"), None)
    line = command_line(
        QemuOptions(image=IMAGE),
        MACHINES["x86-64"],
        QemuBinary("/usr/bin/qemu", (7, 2, 0)),
        record,
        Parts("tcg", None, None, None, None),
    )
    assert after(line, "-qmp") == ["unix:/run/a,,b/qmp.sock,server=on,wait=off"]
    assert "logfile=/run/a,,b/console.log" in after(line, "-chardev")[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs an image or a kernel"),
        ({"image": IMAGE, "initrd": IMAGE}, "with a kernel only"),
        ({"image": IMAGE, "append": "x"}, "with a kernel only"),
        ({"image": IMAGE, "persist": True}, "needs a name"),
        ({"kernel": IMAGE, "name": "a", "persist": True}, "needs a name and an image"),
        ({"image": IMAGE, "memory": 1000}, "too few"),
        ({"image": IMAGE, "cpus": 0}, "at least one CPU"),
        ({"image": IMAGE, "icount": True, "accelerator": "kvm"}, "cannot use KVM"),
        ({"image": IMAGE, "network": "none", "forwards": (Forward(1, 2),)}, "without a network"),
    ],
)
def test_options_that_do_not_fit_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        QemuOptions(**options)


@pytest.mark.parametrize("text", ["", "80", "a:b", "80:0", "65536:1", "1:65536", "1:2:3", "-1:2"])
def test_what_is_no_forward(text: str) -> None:
    with pytest.raises(UsageError, match="not a forward"):
        Forward.parse(text)


def test_words_become_options(tmp_path: Path) -> None:
    data = tmp_path / "ud"
    data.write_text("#cloud-config\n{}\n")
    options = machine_options(
        image=IMAGE, user="bob", user_data=data, memory="512M", disk="9G", forwards=["0:80"]
    )
    assert options.seed is not None
    assert options.seed.user == "bob"
    assert (options.memory, options.disk_size) == (512 << 20, 9 << 30)
    assert machine_options(image=IMAGE, seed=False).seed is None


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ({"bus": "ide"}, "no such bus: 'ide'"),
        ({"firmware": "efi"}, "no such firmware"),
        ({"network": "lan"}, "no such network"),
        ({"architecture": "vax"}, "no such architecture"),
        ({"accelerator": "hax"}, "no such accelerator"),
        ({"memory": "much"}, "not a size"),
        ({"user_data": Path("/none")}, "cannot read /none"),
        ({"kernel": Path("/none")}, "/none does not exist"),
        ({"seed": False, "user": "x"}, "without a seed"),
    ],
)
def test_words_that_are_wrong(word: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        machine_options(image=IMAGE, **word)


def test_bad_user_data_is_called_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my-data.yaml"
    path.write_text("#cloud-config\na: [\n")
    with pytest.raises(UsageError, match=r"my-data\.yaml:\d: not YAML"):
        machine_options(image=IMAGE, user_data=path)
