"""What the lab's tests share: registries of their own, and what this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.emulator.conftest import need, qemu

from tegu.emulator.arch import facts_for
from tegu.emulator.binary import QemuBinary
from tegu.emulator.guests import GUESTS
from tegu.lab.options import QemuOptions
from tegu.lab.registry import Registry

__all__ = ["need", "qemu"]


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every record, cache and private directory of a test apart from the user's."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry."""
    return Registry(tmp_path / "registry")


@pytest.fixture
def talker(tmp_path: Path, qemu: QemuBinary) -> QemuOptions:
    """A machine that says one line on its console, again and again, and answers nothing."""
    kernel = tmp_path / "talker"
    kernel.write_bytes(GUESTS[facts_for(None).name])
    return QemuOptions(kernel=kernel, memory=64 << 20, cpus=1, accelerator="tcg", name="talker")
