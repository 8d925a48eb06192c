"""Limits of a service that has no control group just now, because it waits to be started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tegu.heal import Finding, Subject
from tegu.heal.remedies import limits
from tegu.heal.remedies.limits import LowerWeight, RaiseMemory
from tegu.heal.remedy import Refused

PATH = "/system.slice/shop.service"


def finding(path: str = PATH) -> Finding:
    return Finding("oom_loop", "x", "critical", 1, Subject.group(path), target={"group": path})


def shown(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    monkeypatch.setattr(limits, "properties", lambda unit, *names: values)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "hierarchy", lambda: tmp_path)
    monkeypatch.setattr(limits, "_available", lambda: 1 << 30)
    return tmp_path


def test_what_systemd_knows_counts_between_two_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    shown(monkeypatch, ActiveState="activating", MemoryMax="25165824")
    state = RaiseMemory().prepare(finding())
    assert (state["unit"], state["old"], state["new"]) == ("shop.service", "25165824", "50331648")
    (line,) = RaiseMemory().plan(finding(), state)
    assert line == "systemctl set-property --runtime shop.service MemoryMax=50331648"


def test_the_group_itself_counts_when_it_is_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown(monkeypatch, ActiveState="active", MemoryMax="1")
    (root / PATH.lstrip("/")).mkdir(parents=True)
    with pytest.raises(Refused, match=r"has no memory\.max"):
        RaiseMemory().prepare(finding())
    (root / PATH.lstrip("/") / "memory.max").write_text("1000\n")
    assert RaiseMemory().prepare(finding())["old"] == "1000"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"ActiveState": "failed", "MemoryMax": "25165824"},
        {"ActiveState": "inactive", "MemoryMax": "25165824"},
        {"ActiveState": "activating", "MemoryMax": "[not set]"},
    ],
)
def test_what_has_ended_is_gone(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    shown(monkeypatch, **values)
    with pytest.raises(Refused, match="is gone"):
        RaiseMemory().prepare(finding())


def test_no_limit_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shown(monkeypatch, ActiveState="activating", MemoryMax="infinity")
    with pytest.raises(Refused, match="no limit of its own"):
        RaiseMemory().prepare(finding())


def test_a_group_that_is_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    shown(monkeypatch, ActiveState="active", CPUWeight="100")
    with pytest.raises(Refused, match="is gone"):
        LowerWeight().prepare(finding("/system.slice/shop.service/inner"))
