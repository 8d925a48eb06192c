"""What a rule finds: what is wrong, on which evidence, who causes it and who suffers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["SEVERITIES", "Evidence", "Finding", "Severity", "Subject"]

Severity = Literal["critical", "warning", "notice"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "notice")
"""critical: something does not work; warning: it is slow or will stop working; notice: know it."""

_UNIT = re.compile(r"[^/]+\.(?:service|scope|slice|socket|mount|swap)$")


@dataclass(frozen=True, slots=True)
class Subject:
    """Someone or something: who causes, or who suffers."""

    kind: str
    """cgroup, process, device, filesystem, directory, destination, interface, server, units,
    clock, machine."""
    name: str
    pid: int = 0
    unit: str = ""
    """The systemd unit it belongs to, where it does."""

    def __str__(self) -> str:
        text = f"{self.kind} {self.name}"
        if self.pid:
            text += f" [{self.pid}]"
        if self.unit and self.unit not in self.name:
            text += f" of {self.unit}"
        return text

    @classmethod
    def group(cls, path: str) -> Subject:
        """Return the control group `path` (below the root of the hierarchy)."""
        return cls("cgroup", path, unit=unit_of(path))


def unit_of(path: str) -> str:
    """Return the systemd unit that a control group's path lies in, the innermost; or nothing."""
    return next((p for p in reversed(path.split("/")) if _UNIT.match(p)), "")


@dataclass(frozen=True, slots=True)
class Evidence:
    """A number that speaks for the finding, with its unit and the threshold that it passed."""

    name: str
    value: float | str
    unit: str = ""
    limit: float | None = None

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        if isinstance(self.value, int) or (
            isinstance(self.value, float) and self.value.is_integer()
        ):
            value = f"{self.value:.0f}"
        text = f"{self.name} {value}{' ' + self.unit if self.unit else ''}"
        return text if self.limit is None else f"{text} (threshold {self.limit:g})"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something is wrong. `rule` and `culprit` together identify it from one look to the next."""

    rule: str
    title: str
    severity: Severity
    sure: float
    """From 0 to 1: how sure the rule is of the cause."""
    culprit: Subject | None
    victims: tuple[Subject, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    stacks: tuple[tuple[str, ...], ...] = ()
    since: float | None = None
    """Seconds since the epoch when it began, where that is known."""
    remedy: str = ""
    """The name of what `tegu heal` can do about it; empty: nothing safe."""
    target: dict[str, Any] = field(default_factory=dict)
    """What the remedy needs to know."""
    advice: str = ""
    """What a person can do."""

    @property
    def key(self) -> str:
        """The finding's identity."""
        return f"{self.rule}:{self.culprit.name if self.culprit else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return everything, as JSON can say it."""
        from dataclasses import asdict

        return {"key": self.key, **asdict(self)}
