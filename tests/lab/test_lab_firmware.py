"""UEFI firmware is found by QEMU's descriptors, whatever the distribution's paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tegu.emulator.arch import MACHINES, facts_for
from tegu.errors import UnsupportedError
from tegu.lab.firmware import find_uefi

X86 = MACHINES["x86-64"]


def describe(
    directory: Path, name: str, *, architecture: str = "x86_64", **changes: Any
) -> tuple[Path, Path]:
    directory.mkdir(exist_ok=True)
    code, variables = directory / f"{name}.code", directory / f"{name}.vars"
    code.touch()
    variables.touch()
    body = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(variables), "format": "raw"},
        },
        "targets": [{"architecture": architecture, "machines": ["pc-q35-*", "virt-*"]}],
        "features": ["acpi-s3"],
    } | changes
    (directory / f"{name}.json").write_text(json.dumps(body))
    return code, variables


def test_the_first_that_fits_is_taken(tmp_path: Path) -> None:
    describe(tmp_path / "d", "10-secure", features=["secure-boot", "requires-smm"])
    describe(tmp_path / "d", "20-arm", architecture="aarch64")
    code, variables = describe(tmp_path / "d", "30-plain")
    describe(tmp_path / "d", "40-later")
    found = find_uefi(X86, [tmp_path / "d"])
    assert (found.code, found.variables) == (code, variables)
    assert find_uefi(MACHINES["arm64"], [tmp_path / "d"]).code.name == "20-arm.code"


def test_etc_hides_usr(tmp_path: Path) -> None:
    describe(tmp_path / "usr", "10-a")
    code, _ = describe(tmp_path / "usr", "20-b")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "10-a.json").touch()
    assert find_uefi(X86, [tmp_path / "etc", tmp_path / "usr"]).code == code


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"mapping": 3}', '"text"', "\udcff"])
def test_damaged_and_foreign_descriptors_are_passed_over(tmp_path: Path, damage: str) -> None:
    code, _ = describe(tmp_path / "d", "20-good")
    (tmp_path / "d" / "10-bad.json").write_bytes(damage.encode(errors="surrogateescape"))
    assert find_uefi(X86, [tmp_path / "d"]).code == code


def test_a_descriptor_of_files_that_are_gone(tmp_path: Path) -> None:
    code, _ = describe(tmp_path / "d", "10-a")
    code.unlink()
    with pytest.raises(UnsupportedError, match="no UEFI firmware for x86-64") as caught:
        find_uefi(X86, [tmp_path / "d", tmp_path / "none"])
    assert "ovmf" in (caught.value.hint or "")


def test_the_installed_firmware_is_found(need: Callable[[str], str]) -> None:
    facts = facts_for(None)
    need(facts.qemu)
    try:
        found = find_uefi(facts)
    except UnsupportedError as e:
        pytest.skip(e.message)
    assert found.code.stat().st_size > found.variables.stat().st_size or facts.name == "arm64"
