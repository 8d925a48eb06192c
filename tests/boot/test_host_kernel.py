"""Kernels that come and go inside a machine: what the ESP looks like afterwards."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.boot import arch_of, entry_of
from tegu.errors import BuildError, DefinitionError, TeguError, UnsupportedError, UsageError
from tegu.host import list_kernels, load_config, remove_kernel, update_kernels
from tegu.linux import mount, run_isolated

from .test_boot_initrd import ELF, STATIC
from .test_boot_loader import program

CONFIG = """\
name = "tegu"
architecture = "x86-64"
firmware = ["uefi", "bios"]
filesystem = "ext4"
initrd = "minimal"
modules = []
esp = "12345678-1234-8234-9234-123456789abc"
keep = 2
"""
FILES = Path(__file__).parents[2] / "src/tegu/host/files"


class Machine:
    """A machine's root and its ESP, both directories; kernels are made-up programs."""

    def __init__(self, base: Path) -> None:
        self.root, self.esp = base / "root", base / "esp"
        arch = arch_of("x86-64")
        files = {
            "etc/tegu/boot.toml": CONFIG.encode(),
            "etc/kernel/cmdline": b"root=PARTUUID=1 rw\n",
            "etc/os-release": b'PRETTY_NAME="Tegu Linux 1"\n',
            "usr/bin/busybox": STATIC,
            arch.stub: program(),
            arch.boot_loader: program(),
        }
        for name, data in files.items():
            self.write(self.root / name, data)
        self.esp.mkdir(exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def install(self, version: str, *, size: int = 1000) -> None:
        modules = self.root / "usr/lib/modules" / version
        self.write(modules / "kernel/virtio_blk.ko", ELF)
        self.write(modules / "modules.dep", b"kernel/virtio_blk.ko:\n")
        self.write(modules / "modules.alias", b"alias virtio:d2* virtio_blk\n")
        self.write(modules / "modules.builtin", b"kernel/fs/ext4.ko\n")
        kernel = self.root / f"boot/vmlinuz-{version}"
        self.write(kernel, program(extra=0) + os.urandom(size))
        os.utime(kernel, (1_700_000_000, 1_700_000_000))

    def uninstall(self, version: str) -> None:
        (self.root / f"boot/vmlinuz-{version}").unlink()

    def update(self, running: str = "6.1") -> dict[str, str]:
        changes = update_kernels(self.root, self.esp, running=running)
        return {c.file: c.action for c in changes}

    def ukis(self) -> list[str]:
        return sorted(p.name for p in (self.esp / "EFI/Linux").iterdir())

    def menu(self) -> str:
        return (self.esp / "grub/grub.cfg").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.install("6.1")
    made.update()
    return made


def test_a_first_kernel_brings_everything(machine: Machine) -> None:
    assert machine.ukis() == ["tegu-6.1.efi"]
    assert (machine.esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == program()
    assert (machine.esp / "loader/loader.conf").exists()
    image = (machine.esp / "EFI/Linux/tegu-6.1.efi").read_bytes()
    entry = entry_of("EFI/Linux/tegu-6.1.efi", image)
    assert (entry.version, entry.cmdline) == ("6.1", "root=PARTUUID=1 rw")
    assert entry.initrd is not None
    assert f"linux (uki){entry.kernel[0] // 512}+" in machine.menu()


def test_nothing_changed_means_nothing_is_written(machine: Machine) -> None:
    assert set(machine.update().values()) == {"kept"}


def test_a_second_kernel_comes_first_in_the_menu(machine: Machine) -> None:
    machine.install("6.12")
    changes = machine.update()
    assert changes["EFI/Linux/tegu-6.12.efi"] == "written"
    assert changes["EFI/Linux/tegu-6.1.efi"] == "kept"
    assert machine.menu().index("tegu-6.12.efi") < machine.menu().index("tegu-6.1.efi")


def test_two_are_kept_and_the_one_that_runs(machine: Machine) -> None:
    machine.install("6.2")
    machine.install("6.3")
    assert "removed" not in machine.update(running="6.1").values()
    assert machine.ukis() == ["tegu-6.1.efi", "tegu-6.2.efi", "tegu-6.3.efi"]
    changes = machine.update(running="6.3")
    assert changes["EFI/Linux/tegu-6.1.efi"] == "removed"
    assert machine.ukis() == ["tegu-6.2.efi", "tegu-6.3.efi"]
    assert "tegu-6.1.efi" not in machine.menu()


def test_an_uninstalled_kernel_leaves(machine: Machine) -> None:
    machine.install("6.2")
    machine.update(running="6.2")
    machine.uninstall("6.1")
    assert machine.update(running="6.2")["EFI/Linux/tegu-6.1.efi"] == "removed"


def test_boot_counting_in_a_name_is_kept(machine: Machine) -> None:
    path = machine.esp / "EFI/Linux/tegu-6.1.efi"
    path.rename(path.with_name("tegu-6.1+2-1.efi"))
    machine.update()
    assert machine.ukis() == ["tegu-6.1+2-1.efi"]
    assert [k.version for k in list_kernels(machine.root, machine.esp)] == ["6.1"]


def test_other_systems_on_the_esp_are_left_alone(machine: Machine) -> None:
    machine.write(machine.esp / "EFI/Linux/other-1.efi", b"not ours")
    machine.install("6.2")
    machine.install("6.3")
    machine.update(running="6.3")
    assert "other-1.efi" in machine.ukis()


def test_removing(machine: Machine) -> None:
    machine.install("6.2")
    machine.update()
    changes = remove_kernel("6.1", machine.root, machine.esp)
    assert {c.file: c.action for c in changes}["EFI/Linux/tegu-6.1.efi"] == "removed"
    assert machine.ukis() == ["tegu-6.2.efi"]
    assert "tegu-6.1.efi" not in machine.menu()


def test_the_last_kernel_is_not_removed(machine: Machine) -> None:
    with pytest.raises(UsageError, match="the only one"):
        remove_kernel("6.1", machine.root, machine.esp)
    with pytest.raises(UsageError, match=r"kernel 9 has no boot file \(there are: 6\.1\)"):
        remove_kernel("9", machine.root, machine.esp)
    assert machine.ukis() == ["tegu-6.1.efi"]


def test_listing(machine: Machine) -> None:
    machine.install("6.2")
    listed = list_kernels(machine.root, machine.esp)
    assert [(k.version, k.installed, k.boot_file is not None) for k in listed] == [
        ("6.2", True, False),
        ("6.1", True, True),
    ]


def test_a_damaged_kernel_changes_nothing(machine: Machine) -> None:
    before = {p: p.read_bytes() for p in machine.esp.rglob("*") if p.is_file()}
    machine.install("6.2")
    machine.write(machine.root / "boot/vmlinuz-6.2", b"cut short")
    with pytest.raises(BuildError, match=r"the kernel 6\.2 is cut short"):
        machine.update()
    assert {p: p.read_bytes() for p in machine.esp.rglob("*") if p.is_file()} == before


def test_no_kernel_at_all(machine: Machine) -> None:
    machine.uninstall("6.1")
    with pytest.raises(BuildError, match="no kernel is installed"):
        machine.update()
    assert machine.ukis() == ["tegu-6.1.efi"]


def on_small_esp(base: Path, megabytes: int, work: Callable[[Machine], Any]) -> Any:
    """Run `work` on a machine whose ESP is a file system of its own, with so much room."""

    def inside(_: Callable[[Any], None]) -> Any:
        base.mkdir(exist_ok=True)
        (base / "esp").mkdir()
        mount("tmpfs", base / "esp", data=f"size={megabytes}M")
        return work(Machine(base))

    return run_isolated(inside)


@pytest.mark.slow
def test_a_full_esp_keeps_what_it_has(shared_area: Path) -> None:
    def work(machine: Machine) -> tuple[str, list[str], str]:
        machine.install("6.1", size=3 << 20)
        machine.update()
        machine.install("6.2", size=3 << 20)
        with pytest.raises(BuildError) as caught:
            machine.update()
        return caught.value.message, machine.ukis(), machine.menu()

    message, left, menu = on_small_esp(shared_area, 5, work)
    assert "the ESP is full" in message
    assert "needs 4 MiB and 1 MiB are free" in message
    assert left == ["tegu-6.1.efi"]
    assert "tegu-6.1.efi" in menu
    assert "tegu-6.2.efi" not in menu


@pytest.mark.slow
def test_an_old_kernel_makes_room_for_a_new_one(shared_area: Path) -> None:
    def work(machine: Machine) -> list[str]:
        for version in ("6.1", "6.2"):
            machine.install(version, size=3 << 20)
        machine.update(running="6.2")
        machine.install("6.3", size=3 << 20)
        machine.update(running="6.2")
        return machine.ukis()

    assert on_small_esp(shared_area, 8, work) == ["tegu-6.2.efi", "tegu-6.3.efi"]


@pytest.fixture
def shared_area(tmp_path: Path) -> Path:
    """A directory that can be written to inside the namespaces as well."""
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    tmp_path.chmod(0o777)
    return tmp_path / "machine"


# The configuration


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("keep = 2", "keep = 0", "keep: at least one"),
        ("keep = 2", 'keep = "2"', "keep: must be a int"),
        ("keep = 2", "keep = true", "keep: must be a int"),
        ("modules = []", "modules = [1]", "modules: must be a list of strings"),
        ("modules = []", "", "modules is missing"),
        ("modules = []", "modules = []\nnew = 1", "new: there is no such key"),
        ("modules = []", "modules = [", r"boot\.toml"),
    ],
)
def test_wrong_configuration(machine: Machine, old: str, new: str, words: str) -> None:
    path = machine.root / "etc/tegu/boot.toml"
    path.write_text(CONFIG.replace(old, new))
    with pytest.raises(DefinitionError, match=words):
        load_config(machine.root)


def test_a_machine_that_does_not_boot_from_our_files(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no /etc/tegu/boot"):
        load_config(tmp_path)


def test_no_command_line(machine: Machine) -> None:
    (machine.root / "etc/kernel/cmdline").unlink()
    with pytest.raises(DefinitionError, match="cannot read"):
        load_config(machine.root)


@settings(deadline=None)
@given(text=st.text() | st.binary().map(lambda b: CONFIG + repr(b)))
def test_any_configuration_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name in ("tegu", "kernel"):
        (root / "etc" / name).mkdir(parents=True)
    (root / "etc/tegu/boot.toml").write_text(text, errors="surrogatepass")
    (root / "etc/kernel/cmdline").write_text("quiet")
    with pytest.raises(TeguError):
        load_config(root)
        raise DefinitionError("it is right")


# The hooks and the command


@pytest.mark.parametrize("hook", ["postinst.d", "postrm.d"])
def test_hooks_do_nothing_while_an_image_is_built(tmp_path: Path, hook: str) -> None:
    (tmp_path / "tegu").write_text("#!/bin/sh\necho called\nexit 1\n")
    (tmp_path / "tegu").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TEGU_BUILD": "1"}
    path = FILES / "etc/kernel" / hook / "zz-tegu"
    done = subprocess.run([path, "6.1"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", sorted(p for p in FILES.rglob("*") if p.is_file()))
def test_shipped_scripts_can_be_run(path: Path) -> None:
    if not path.read_bytes().startswith(b"#!"):
        return
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["sh", "-n", path]).returncode == 0


def test_the_command_says_why_it_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    from tegu.cli.front import main

    if Path("/etc/tegu/boot.toml").exists():
        pytest.skip("this machine boots from files made by tegu")
    assert main(["host", "kernel", "--list", "--json"]) == 12
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "UnsupportedError"
    assert main(["host", "kernel", "--list", "--update"]) == 2
