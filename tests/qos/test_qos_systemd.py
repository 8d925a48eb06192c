"""Units, with a systemctl of ours that keeps properties and drop-ins as systemd does.

The real one is in test_qos_guest.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.qos.fake import Fake

from tegu.linux import settings
from tegu.linux.settings import PropertyTarget
from tegu.qos import apply, parse_policy, undo
from tegu.qos.daemon import Daemon
from tegu.qos.owner import Owner

SYSTEMCTL = """#!{python}
import json, pathlib, sys
top = pathlib.Path({top!r})
state = top / "units.json"
units = json.loads(state.read_text())
words = sys.argv[1:]
if words[0] == "show":
    unit = units.get(words[1])
    print("LoadState=" + ("loaded" if unit is not None else "not-found"))
    if unit is not None:
        unset = "infinity" if words[-1].startswith("CPUQuota") else "[not set]"
        print(words[-1] + "=" + unit.get(words[-1], unset))
elif words[0] == "set-property":
    assert words[1] == "--runtime"
    name, _, value = words[3].partition("=")
    shown = value or "[not set]"
    if name == "CPUQuota":
        name = "CPUQuotaPerSecUSec"
        shown = f"{{int(float(value[:-1]) * 10)}}ms" if value else "infinity"
    units[words[2]][name] = shown
    folder = top / "control" / (words[2] + ".d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"50-{{words[3].partition('=')[0]}}.conf").write_text(words[3])
elif words[0] == "daemon-reload":
    (top / "reloads").open("a").write("x")
state.write_text(json.dumps(units))
"""
POLICY = """
[latency]
match = ["unit:web"]
[batch]
match = ["slice:jobs"]
[devices]
vda = "none"
"""


@pytest.fixture
def units(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (fake.place.root / "run/systemd/system").mkdir(parents=True)
    for name in ("/system.slice/web.service", "/jobs.slice/one.service"):
        fake.group(name)
    (tmp_path / "units.json").write_text(
        '{"web.service": {}, "system.slice": {}, "jobs.slice": {"CPUWeight": "50"}}'
    )
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL.format(python=sys.executable, top=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(settings, "_CONTROL", tmp_path / "control")
    kept = tmp_path / "control/jobs.slice.d/50-CPUWeight.conf"
    kept.parent.mkdir(parents=True)
    kept.write_text("# by the administrator\nCPUWeight=50\n")
    return tmp_path


def test_units_are_set_through_systemd(fake: Fake, units: Path) -> None:
    before = fake.snapshot()
    state = (units / "units.json").read_text()
    done = apply(parse_policy(POLICY, "p"), fake.place)
    assert not done.refused
    assert PropertyTarget("web.service", "CPUWeight").read() == "10000"
    assert PropertyTarget("jobs.slice", "CPUWeight").read() == "idle"
    # Files of units are systemd's.
    changed = {k for k, v in fake.snapshot().items() if before.get(k) != v}
    assert not [k for k in changed if k.startswith("cgroup")]
    undone = undo(fake.place)
    assert not undone.conflicts and not undone.failed
    assert PropertyTarget("web.service", "CPUWeight").read() == ""
    assert PropertyTarget("jobs.slice", "CPUWeight").read() == "50"
    # Drop-ins are as they were: none for web, the administrator's for jobs.
    assert not (units / "control/web.service.d").exists()
    kept = (units / "control/jobs.slice.d/50-CPUWeight.conf").read_text()
    assert kept.startswith("# by the administrator")
    assert (units / "reloads").exists()
    assert '"CPUWeight": "50"' in state


def test_a_unit_that_is_gone(fake: Fake, units: Path) -> None:
    apply(parse_policy(POLICY, "p"), fake.place)
    (units / "units.json").write_text('{"jobs.slice": {"CPUWeight": "idle"}}')
    undone = undo(fake.place)
    assert not undone.failed and "web.service CPUWeight" in undone.gone


def test_quotas(fake: Fake, units: Path) -> None:
    text = POLICY + '[slo]\np99="1ms"\nfeed="file:/none"\n[loop]\nknobs=["cpu"]\nceiling={cpu=2}\n'
    daemon = Daemon.start(parse_policy(text, "p"), fake.place)
    assert daemon.window(0.0).state == "safe"
    state = json.loads(fake.place.journal.path.with_suffix(".state").read_text())
    assert state["failed"] == []
    assert PropertyTarget("jobs.slice", "CPUQuota").read() == "20%"
    undo(fake.place)
    assert PropertyTarget("jobs.slice", "CPUQuota").read() == ""


def test_who_owns_what(fake: Fake, units: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    owner = Owner(fake.place.hierarchy, fake.place.root)
    fake.group("/system.slice/box.service/inner.slice")
    assert owner.unit("/system.slice/box.service/inner.slice") == "inner.slice"
    delegated = str(fake.place.hierarchy.root / "system.slice/box.service")

    def getxattr(path: object, name: str) -> bytes:
        if str(path) == delegated and name == "user.delegate":
            return b"1"
        raise OSError(61, "No data available")

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert owner.unit("/system.slice/box.service/inner.slice") is None
    assert owner.unit("/system.slice/box.service") == "box.service"
