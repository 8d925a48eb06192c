"""What came of a plan: values that outlive the run, as JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from tegu.errors import UsageError
from tegu.files import write_atomic

__all__ = [
    "FORMAT",
    "STATUSES",
    "MachineReport",
    "Report",
    "Status",
    "StepResult",
    "as_json",
    "read_report",
    "write_report",
]

FORMAT: Final = "tegu-report-1"

Status = Literal["passed", "failed", "error", "skipped"]
"""`failed`: an expectation did not hold. `error`: it could not be found out."""

STATUSES: Final[tuple[Status, ...]] = ("passed", "failed", "error", "skipped")


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step on one machine.

    `seconds` of wall time over all `attempts`. `message` says what is wrong, and is empty for a
    step that passed. `exit_code` is None for anything but a command that ended.
    """

    name: str
    status: Status
    seconds: float
    message: str = ""
    action: str = ""
    command: str = ""
    attempts: int = 0
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class MachineReport:
    """One run of the plan on one machine. `console` and `journal` as far as they were collected."""

    name: str
    firmware: str
    accelerator: str
    started: float
    seconds: float
    steps: tuple[StepResult, ...]
    notice: str = ""
    console: str = ""
    journal: str = ""

    @property
    def passed(self) -> bool:
        """True when nothing failed, and not everything was skipped."""
        statuses = {s.status for s in self.steps}
        return "passed" in statuses and not statuses & {"failed", "error"}

    def count(self, status: Status) -> int:
        """Return how many steps ended like that."""
        return sum(s.status == status for s in self.steps)


@dataclass(frozen=True, slots=True)
class Report:
    """A plan's outcome on all its machines. `started` is in seconds since the epoch."""

    plan: str
    description: str
    subject: str
    started: float
    seconds: float
    machines: tuple[MachineReport, ...]

    @property
    def passed(self) -> bool:
        """True when every machine passed."""
        return bool(self.machines) and all(m.passed for m in self.machines)

    def count(self, status: Status) -> int:
        """Return how many steps ended like that, on all machines."""
        return sum(m.count(status) for m in self.machines)


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    write_atomic(path, json.dumps(as_json(report), indent=1) + "\n")


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data, with `format`, `passed` and the counts."""
    counts = {s: report.count(s) for s in STATUSES}
    return {"format": FORMAT, "passed": report.passed, "counts": counts, **asdict(report)}


def read_report(path: Path) -> Report:
    """Read a report back; UsageError when the file is none."""
    try:
        body = json.loads(path.read_text())
        if body["format"] != FORMAT:
            raise ValueError(f"its format is {body['format']!r}")
        machines = tuple(
            _make(MachineReport, m, steps=tuple(_make(StepResult, s) for s in m["steps"]))
            for m in body["machines"]
        )
        report: Report = _make(Report, body, machines=machines)
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{path} is not a report of tegu: {e}") from e
    return report


def _make(kind: Any, body: dict[str, Any], **parts: object) -> Any:
    known = {f.name for f in fields(kind)}
    return kind(**({k: v for k, v in body.items() if k in known} | parts))
