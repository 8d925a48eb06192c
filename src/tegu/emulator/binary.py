"""The QEMU that is installed: where it is and which version."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tegu.emulator.arch import MachineFacts
from tegu.errors import UnsupportedError
from tegu.process import require, run

__all__ = ["QemuBinary", "find_qemu"]


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """A system emulator; `version` as numbers, such as (7, 2, 22)."""

    path: str
    version: tuple[int, ...]


def find_qemu(facts: MachineFacts) -> QemuBinary:
    """Return the emulator for `facts`; UnsupportedError when it is missing or older than 6.2."""
    path = require(facts.qemu, package=facts.package)
    said = run([path, "--version"], timeout=20).stdout
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        raise UnsupportedError(f"{path} does not say which version it is")
    version = tuple(int(part) for part in match.groups())
    if version < (6, 2):
        raise UnsupportedError(
            f"{path} is version {match.group(1)}.{match.group(2)}: 6.2 is needed"
        )
    return QemuBinary(path, version)
