"""Units: started anew, forgotten when they are dead, and kept from flooding the journal."""

from __future__ import annotations

import re
from pathlib import Path

from tegu.files import write_atomic
from tegu.heal.finding import Finding
from tegu.heal.remedy import Refused, Remedy, State
from tegu.heal.units import properties
from tegu.process import run

__all__ = ["ForgetUnits", "LimitLog", "RestartUnit"]

_UNIT = re.compile(r"[A-Za-z0-9@_.:\\-]+\.service")
_LINES = 20  # a second


class RestartUnit(Remedy):
    """Restart a service."""

    name = "restart-unit"
    summary = "restart a service"
    blast = "unit"
    settle = 3.0
    reversible = False

    def prepare(self, finding: Finding) -> State:
        unit = _service(finding)
        about = properties(unit, "LoadState", "RefuseManualStop", "RefuseManualStart")
        if about.get("LoadState") != "loaded":
            raise Refused(f"{unit} is not loaded: systemd could not start it again")
        if "yes" in (about.get("RefuseManualStop"), about.get("RefuseManualStart")):
            raise Refused(f"{unit} refuses to be restarted by hand")
        return {"unit": unit}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"systemctl restart {state['unit']}"]

    def apply(self, finding: Finding, state: State) -> None:
        # A process that is stopped by a signal would make systemd wait until it loses patience.
        run(["systemctl", "kill", "--signal=CONT", "--", state["unit"]], timeout=30, check=False)
        run(["systemctl", "restart", "--", state["unit"]], timeout=150)


class ForgetUnits(Remedy):
    """Let systemd forget failed units of one pattern, and read itself anew when it has grown."""

    name = "forget-units"
    summary = "let systemd forget failed units of one pattern"
    blast = "none"
    reversible = False

    def prepare(self, finding: Finding) -> State:
        pattern = str(finding.target["pattern"])
        if pattern.strip("*") in ("", ".service"):
            raise Refused(f"{pattern!r} is every unit")
        return {"pattern": pattern}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"systemctl reset-failed '{state['pattern']}'"]

    def apply(self, finding: Finding, state: State) -> None:
        run(["systemctl", "reset-failed", "--", state["pattern"]], timeout=60)


class LimitLog(Remedy):
    """Let journald take 20 lines a second of a service, until the next boot.

    journald reads the limit of each line's unit from a link that systemd keeps in
    /run/systemd/units; systemd writes it when a unit starts. To change it without a restart the
    link is replaced, and a drop-in keeps it for the next start.
    """

    name = "limit-log"
    summary = "limit what a service may write to the journal"
    blast = "unit"
    settle = 3.0

    def prepare(self, finding: Finding) -> State:
        unit = _service(finding)
        links = {
            name: _link(Path(f"/run/systemd/units/log-rate-limit-{name}:{unit}"))
            for name in ("interval", "burst")
        }
        dropin = Path(f"/run/systemd/system/{unit}.d/50-tegu-heal.conf")
        if dropin.exists():
            raise Refused(f"{unit} is limited already")
        return {"unit": unit, "links": links, "dropin": str(dropin)}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [
            f"{state['dropin']}: LogRateLimitIntervalSec=1s, LogRateLimitBurst={_LINES}",
            "systemctl daemon-reload",
        ]

    def apply(self, finding: Finding, state: State) -> None:
        write_atomic(
            Path(state["dropin"]),
            f"[Service]\nLogRateLimitIntervalSec=1s\nLogRateLimitBurst={_LINES}\n",
        )
        _links(state["unit"], {"interval": "1000000", "burst": str(_LINES)})
        run(["systemctl", "daemon-reload"], timeout=60)

    def undo(self, finding: Finding, state: State) -> None:
        Path(state["dropin"]).unlink(missing_ok=True)
        _links(state["unit"], state["links"])
        run(["systemctl", "daemon-reload"], timeout=60)


def _service(finding: Finding) -> str:
    unit = str(finding.target.get("unit", ""))
    if not _UNIT.fullmatch(unit):
        raise Refused(f"{unit or 'it'} is no service")
    return unit


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


def _links(unit: str, values: dict[str, str | None]) -> None:
    for name, value in values.items():
        path = Path(f"/run/systemd/units/log-rate-limit-{name}:{unit}")
        if value is None:
            path.unlink(missing_ok=True)
            continue
        new = path.with_name(f".#{path.name}")
        new.unlink(missing_ok=True)
        new.symlink_to(value)
        new.rename(path)
