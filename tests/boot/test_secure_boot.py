"""Firmware that starts only what it knows: with the keys that OVMF's packages have for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tegu.emulator.arch import MACHINES
from tegu.image.disk import DiskSpec
from tegu.image.immutable import build_immutable, make_slot
from tegu.image.partition import read_table
from tegu.image.programs import Tools

from .conftest import BUSES, Bench, said
from .test_slots_boot import hand_out, slot_tree, slots_spec

pytestmark = pytest.mark.slow

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
KEY = Path("/usr/share/ovmf/PkKek-1-snakeoil.key")
CERTIFICATE = KEY.with_suffix(".pem")


def start(disk: Path, *ends: str, timeout: float = 900) -> str:
    """Start the disk under Secure Boot until it is off or has said one of `ends`."""
    facts = MACHINES["x86-64"]
    with tempfile.TemporaryDirectory() as directory:
        variables = shutil.copy(VARIABLES, directory)
        argv = [facts.qemu, "-accel", "tcg", "-cpu", facts.tcg_cpu_qemu7, "-m", "512"]
        argv += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none"]
        argv += ["-no-reboot", "-snapshot", "-machine", "q35,smm=on"]
        argv += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={CODE}"]
        argv += ["-drive", f"if=pflash,format=raw,file={variables}"]
        argv += ["-drive", f"if=none,id=disk,format=raw,file={disk}", *BUSES["virtio-blk"]]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as machine:
            late = threading.Timer(timeout, machine.kill)
            late.start()
            text = ""
            try:
                assert machine.stdout is not None
                while more := machine.stdout.read1(65536):
                    text += more.decode(errors="replace").replace("\r", "")
                    if any(end in text for end in ends):
                        break
            finally:
                late.cancel()
                machine.kill()
    return text


@pytest.fixture(scope="module")
def disks(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A disk that is signed, and one whose kernel is another than was signed."""
    if not os.environ.get("TEGU_TEST_UPGRADE"):
        pytest.skip("firmware in system management mode is slow to emulate: TEGU_TEST_UPGRADE=1")
    for path in (CODE, VARIABLES, KEY, CERTIFICATE):
        if not path.exists():
            pytest.skip(f"there is no {path}, which the package ovmf of Debian has")
    directory = tmp_path_factory.mktemp("secure")
    key = serialization.load_pem_private_key(KEY.read_bytes(), b"snakeoil")
    plain = directory / "key.pem"
    plain.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    spec: DiskSpec = slots_spec(secure_boot=(plain, CERTIFICATE))

    def work(tools: Tools, place: Path) -> None:
        tree = slot_tree(bench, place / "tree", "1")
        slot = make_slot(tree, spec, tools, place / "1.slot", {})
        again = make_slot(tree, spec, tools, place / "again.slot", {})
        assert (slot / "boot.efi").read_bytes() == (again / "boot.efi").read_bytes()
        build_immutable(tree, slot, spec, tools, place / "disk.raw")
        hand_out(place / "disk.raw", directory / "signed.raw")

    bench.isolated(work)
    shutil.copy(directory / "signed.raw", directory / "changed.raw")
    with (directory / "changed.raw").open("r+b") as f:
        esp = next(p for p in read_table(f).partitions if p.label == "esp")
        f.seek(esp.start)
        data = f.read(esp.size)
        # Another word on the command line: what a root hash exchanged for another would be.
        at = data.index(b" tegu.slots=")
        f.seek(esp.start + at)
        f.write(b" tegu.SLOTS=")
    return {name: directory / f"{name}.raw" for name in ("signed", "changed")}


def test_what_is_signed_starts(disks: dict[str, Path]) -> None:
    console = start(disks["signed"], "TEGU-UP")
    assert "TEGU-UP" in console, console[-3000:]
    assert said(console)["slot"] == "a"


def test_another_root_hash_does_not_start(disks: dict[str, Path]) -> None:
    refusals = ("Security", "Access denied", "Access Denied")
    console = start(disks["changed"], "TEGU-UP", *refusals)
    assert "TEGU-UP" not in console
    assert any(word in console for word in refusals), console[-3000:]
