"""A rule: from what a look saw to findings, with the reason and the reference it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tegu.heal.finding import Finding
from tegu.heal.look import Look

__all__ = ["Rule"]


@dataclass(frozen=True)
class Rule:
    """One question about a machine. `check` yields findings, and nothing for a healthy machine.

    `signals` says what it reads, `reference` on whose word its argument rests.
    """

    name: str
    question: str
    signals: tuple[str, ...]
    reference: str
    check: Callable[[Look], Iterable[Finding]]
