"""When a machine upgrades itself: a window, and its own moment in it (systemd.timer(5))."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UpgradeError, UsageError
from tegu.files import write_atomic
from tegu.process import CommandError, require, run

__all__ = ["Schedule", "read_schedule", "turn_off", "turn_on"]

_UNITS = Path("/etc/systemd/system")
_TIMER = "tegu-autoupgrade.timer"
_SERVICE = "tegu-autoupgrade.service"
_DROP_IN = "50-tegu.conf"
_LENGTH = re.compile(r"(\d{1,4})(min|h)")
_MOST_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Schedule:
    """`window` is a calendar expression (systemd.time(7)), `length` such as "3h" or "90min".

    `next` is when this machine upgrades next, as systemd says it; empty where it does not know.
    """

    window: str
    length: str
    security: bool
    reboot: bool
    snapshot: bool
    next: str = ""


def turn_on(schedule: Schedule, units: Path = _UNITS) -> Schedule:
    """Let the machine upgrade itself from now on; returns the schedule with its next time.

    Raises UsageError for a window that systemd does not understand.
    """
    match = _LENGTH.fullmatch(schedule.length)
    minutes = int(match[1]) * (60 if match[2] == "h" else 1) if match else 0
    if not 1 <= minutes <= _MOST_MINUTES:
        raise UsageError(
            f"{schedule.length!r} is no length of a window", hint="such as 90min or 3h, at most 24h"
        )
    window = " ".join(schedule.window.split())
    try:
        run([require("systemd-analyze", package="systemd"), "calendar", window], timeout=60)
    except CommandError as e:
        raise UsageError(
            f"{schedule.window!r} is no time of a calendar", hint="such as 'Sun 02:00'"
        ) from e
    options = [
        *(["--security"] if schedule.security else []),
        *([] if schedule.snapshot else ["--no-snapshot"]),
        *(["--reboot"] if schedule.reboot else []),
    ]
    _write(
        units / f"{_TIMER}.d" / _DROP_IN,
        f"[Timer]\nOnCalendar=\nOnCalendar={window}\nRandomizedDelaySec={minutes}min\n",
    )
    _write(
        units / f"{_SERVICE}.d" / _DROP_IN,
        f'[Service]\nEnvironment="TEGU_UPGRADE_OPTIONS={" ".join(options)}"\n',
    )
    _systemctl("daemon-reload")
    # It has no [Install], which would enable it wherever the package is.
    _systemctl("add-wants", "--quiet", "timers.target", _TIMER)
    _systemctl("restart", _TIMER)
    found = read_schedule(units)
    if found is None:
        raise UpgradeError(f"{_TIMER} was enabled and is not")
    return found


def turn_off(units: Path = _UNITS) -> None:
    """Let the machine upgrade itself no more; does nothing where it does not."""
    if not (units / f"{_TIMER}.d" / _DROP_IN).exists():
        return
    _systemctl("stop", _TIMER)
    (units / "timers.target.wants" / _TIMER).unlink(missing_ok=True)
    for unit in (_TIMER, _SERVICE):
        (units / f"{unit}.d" / _DROP_IN).unlink(missing_ok=True)
        if (units / f"{unit}.d").is_dir() and not any((units / f"{unit}.d").iterdir()):
            shutil.rmtree(units / f"{unit}.d")
    _systemctl("daemon-reload")


def read_schedule(units: Path = _UNITS) -> Schedule | None:
    """Return when this machine upgrades itself; None: never."""
    try:
        timer = (units / f"{_TIMER}.d" / _DROP_IN).read_text()
        service = (units / f"{_SERVICE}.d" / _DROP_IN).read_text()
    except FileNotFoundError:
        return None
    window = re.findall(r"(?m)^OnCalendar=(.+)$", timer)
    length = re.findall(r"(?m)^RandomizedDelaySec=(.+)$", timer)
    if not window or not length:
        raise UpgradeError(
            f"{units / _TIMER}.d/{_DROP_IN} was changed by hand",
            hint="turn it off and on again with `tegu autoupgrade`",
        )
    options = service.split()
    return Schedule(
        window=window[-1],
        length=length[-1],
        security=any("--security" in word for word in options),
        reboot=any("--reboot" in word for word in options),
        snapshot="--no-snapshot" not in service,
        next=_next(),
    )


def _next() -> str:
    command = [require("systemctl", package="systemd"), "list-timers", "--output=json", _TIMER]
    try:
        timers = json.loads(run(command, timeout=60).stdout or "[]")
    except (CommandError, ValueError):
        return ""  # no systemd runs here
    from datetime import UTC, datetime

    for timer in timers:
        if isinstance(timer.get("next"), int):
            return f"{datetime.fromtimestamp(timer['next'] / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
    return ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def _systemctl(*words: str) -> None:
    try:
        run([require("systemctl", package="systemd"), *words], timeout=120)
    except CommandError as e:
        raise UpgradeError(f"systemctl {words[0]} failed: {e.message}") from e
