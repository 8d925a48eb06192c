"""When a machine upgrades itself: what is written for systemd, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tegu.errors import UpgradeError, UsageError
from tegu.host.upgrade.schedule import Schedule, read_schedule, turn_off, turn_on

WEEKLY = Schedule("Sun 02:00", "3h", security=True, reboot=True, snapshot=False)
UNITS = Path(__file__).parents[2] / "src/tegu/host/files/usr/lib/systemd/system"


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that notes what it is asked: the test's machine keeps its own timers."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: nothing to read calendars with")
    log = tmp_path / "called"
    script = tmp_path / "bin" / "systemctl"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{log}\n'
        "case $1 in list-timers) echo '[{\"next\": 1795312800000000}]' ;; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{Path('/usr/bin')}:{Path('/bin')}")
    return log


def test_on_and_off_again(tmp_path: Path, called: Path) -> None:
    units = tmp_path / "units"
    assert read_schedule(units) is None
    found = turn_on(WEEKLY, units)
    assert found == replace(WEEKLY, length="180min", next="2026-11-22 02:00 UTC")
    timer = (units / "tegu-autoupgrade.timer.d/50-tegu.conf").read_text()
    assert "OnCalendar=\nOnCalendar=Sun 02:00\n" in timer and "RandomizedDelaySec=180min" in timer
    service = (units / "tegu-autoupgrade.service.d/50-tegu.conf").read_text()
    assert '"TEGU_UPGRADE_OPTIONS=--security --no-snapshot --reboot"' in service
    assert "add-wants --quiet timers.target tegu-autoupgrade.timer" in called.read_text()
    plain = turn_on(Schedule("daily", "90min", security=False, reboot=False, snapshot=True), units)
    assert (plain.window, plain.security, plain.reboot, plain.snapshot) == (
        *("daily", False, False, True),
    )
    turn_off(units)
    assert read_schedule(units) is None and list(units.iterdir()) == []
    turn_off(units)


def test_other_drop_ins_stay(tmp_path: Path, called: Path) -> None:
    mine = tmp_path / "tegu-autoupgrade.timer.d" / "mine.conf"
    turn_on(WEEKLY, tmp_path)
    mine.write_text("[Timer]\nPersistent=yes\n")
    turn_off(tmp_path)
    assert mine.exists()


@pytest.mark.parametrize("window", ["", "someday", "Sun 02:00\nOnBootSec=1", "25:00"])
def test_a_window_that_is_none(window: str, tmp_path: Path, called: Path) -> None:
    with pytest.raises(UsageError, match="is no time of a calendar"):
        turn_on(replace(WEEKLY, window=window), tmp_path)
    assert not called.exists()


@pytest.mark.parametrize("length", ["", "3", "0h", "25h", "3 h", "-1h", "3d"])
def test_a_length_that_is_none(length: str, tmp_path: Path, called: Path) -> None:
    with pytest.raises(UsageError, match="is no length of a window"):
        turn_on(replace(WEEKLY, length=length), tmp_path)


def test_what_was_changed_by_hand_is_told(tmp_path: Path, called: Path) -> None:
    turn_on(WEEKLY, tmp_path)
    (tmp_path / "tegu-autoupgrade.timer.d/50-tegu.conf").write_text("[Timer]\n")
    with pytest.raises(UpgradeError, match="was changed by hand"):
        read_schedule(tmp_path)


def test_the_units_name_each_other() -> None:
    service = (UNITS / "tegu-autoupgrade.service").read_text()
    assert "ExecStart=/usr/bin/tegu upgrade $TEGU_UPGRADE_OPTIONS" in service
    timer = (UNITS / "tegu-autoupgrade.timer").read_text()
    # systemd complains of a timer without a time; and this one must not start by itself.
    assert "OnCalendar=" in timer and "FixedRandomDelay=yes" in timer and "[Install]" not in timer
