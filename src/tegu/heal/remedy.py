"""A remedy: what may be done about a finding, how far it reaches, and how it is taken back."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from tegu.errors import TeguError
from tegu.heal.finding import Finding

__all__ = ["Blast", "Refused", "Remedy", "RepairError"]

Blast = Literal["none", "process", "cgroup", "unit", "device", "network", "machine"]
"""How far a remedy reaches when it goes wrong."""

State = dict[str, Any]
"""What `undo` needs; goes into the journal before anything is done, so JSON must hold it."""


class RepairError(TeguError):
    """A repair was refused, or did not do what it should."""

    exit_code = 31


class Refused(RepairError):  # noqa: N818 - a refusal is an outcome
    """The precondition does not hold: nothing was done."""


class Remedy:
    """Base of the remedies. All methods act on the finding's `target`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    blast: ClassVar[Blast]
    settle: ClassVar[float] = 1.0
    """Seconds until the machine can show that it helped."""
    reversible: ClassVar[bool] = True

    def wait(self, finding: Finding) -> float:
        """Return how long to wait before looking whether it helped, in seconds."""
        return self.settle

    def prepare(self, finding: Finding) -> State:
        """Check the precondition and return what `undo` will need; raises Refused."""
        raise NotImplementedError

    def plan(self, finding: Finding, state: State) -> list[str]:
        """Say, as commands a person could type, what `apply` is about to do."""
        raise NotImplementedError

    def apply(self, finding: Finding, state: State) -> None:
        """Do it; raises RepairError or OSError. May add to `state` what `undo` must know."""
        raise NotImplementedError

    def undo(self, finding: Finding, state: State) -> None:
        """Take it back; only called where `reversible`."""
        raise NotImplementedError


def text_of(state: State) -> str:
    """Return a state as one line."""
    return json.dumps(state, sort_keys=True)
