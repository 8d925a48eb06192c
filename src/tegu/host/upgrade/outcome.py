"""What came of an upgrade or a way back."""

from __future__ import annotations

from dataclasses import dataclass

from tegu.host.upgrade.apt import Update

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `status` as in state.py, or "current" when nothing was to be done.

    `kernels` wait for apt, `reboot` says that the machine must start again to be on trial.
    """

    id: str
    status: str
    release: str
    updates: tuple[Update, ...]
    kernels: tuple[Update, ...]
    reboot: bool
    detail: str = ""
