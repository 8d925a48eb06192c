"""What tests of emulators share: what this machine has."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tegu.emulator.arch import facts_for
from tegu.emulator.binary import QemuBinary, find_qemu


@pytest.fixture
def need() -> Callable[[str], str]:
    """Return a function that skips the test, saying so, unless a program is installed."""

    def check(program: str) -> str:
        path = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{program} is not installed here")
        return path

    return check


@pytest.fixture
def qemu(need: Callable[[str], str]) -> QemuBinary:
    """The emulator of this machine's own architecture."""
    facts = facts_for(None)
    need(facts.qemu)
    return find_qemu(facts)
