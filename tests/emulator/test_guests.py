"""The tiny guests: their bytes are what their sources say, and they run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from tegu.emulator.arch import MACHINES
from tegu.emulator.binary import find_qemu
from tegu.emulator.guests import GUESTS
from tegu.emulator.kvm import probe

TOOLS = {
    "x86-64": ("as", "objcopy"),
    "arm64": ("aarch64-linux-gnu-as", "aarch64-linux-gnu-objcopy"),
}


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_guest_is_its_source_assembled(
    name: str, tmp_path: Path, need: Callable[[str], str]
) -> None:
    assembler, copier = (need(tool) for tool in TOOLS[name])
    if (
        name == "x86-64"
        and subprocess.run(
            [assembler, "--64", "-o", "/dev/null", "/dev/null"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("the assembler here is not one for x86-64")
    flags = ["--64"] if name == "x86-64" else []
    made, plain = tmp_path / "guest.o", tmp_path / "guest.bin"
    with resources.as_file(resources.files("tegu.emulator.guests") / f"{name}.S") as source:
        subprocess.run([assembler, *flags, "-o", made, source], check=True)
    subprocess.run([copier, "-O", "binary", "-j", ".text", made, plain], check=True)
    assert plain.read_bytes() == GUESTS[name]


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_guest_runs_under_emulation(name: str, need: Callable[[str], str]) -> None:
    facts = MACHINES[name]
    need(facts.qemu)
    qemu = find_qemu(facts)
    cpu = facts.emulated_cpu(qemu.version)
    answer = probe(facts, qemu, accelerator="tcg", cpu=cpu, deadline=60)
    assert answer.works, answer.reason
