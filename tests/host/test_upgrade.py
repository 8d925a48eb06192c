"""Upgrades that can be undone: what apt says, which root is which, what comes along."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path

import pytest

from tegu.errors import UnsupportedError, UpgradeError
from tegu.host.upgrade import health, roots
from tegu.host.upgrade.apt import Update, follow, parse_simulation
from tegu.host.upgrade.carry import DATA, carry, data_paths
from tegu.host.upgrade.roots import current_root
from tegu.host.upgrade.state import Event, State, history, note, read_state, write_state

SIMULATION = """\
NOTE: This is only a simulation!
Inst libssl3t64 [3.5.7-1~deb13u3] (3.5.7-1~deb13u4 Debian-Security:13/stable-security [amd64])
Inst tegu-release [26.11] (26.12 tegu:dev [all]) []
Inst linux-image-6.12.111+deb13-cloud-amd64 (6.12.111-1 Debian:13.7/stable [amd64])
Remv old-thing [1.0]
Conf libssl3t64 (3.5.7-1~deb13u4 Debian-Security:13/stable-security [amd64])
"""


def test_what_apt_would_do() -> None:
    found = {u.name: u for u in parse_simulation(SIMULATION)}
    assert found["tegu-release"] == Update("tegu-release", "26.11", "26.12", "tegu:dev [all]")
    assert found["libssl3t64"].security and not found["tegu-release"].security
    assert found["linux-image-6.12.111+deb13-cloud-amd64"].kernel
    assert found["old-thing"].new == ""


def test_the_root_by_mountinfo() -> None:
    text = (
        "22 1 0:20 /.tegu/roots/2026\\0401 / rw shared:1 - btrfs /dev/vda3 rw,subvolid=257\n"
        "30 22 0:5 / /dev rw - devtmpfs udev rw\n"
    )
    root = current_root(text)
    assert (root.name, root.kind, root.source) == (".tegu/roots/2026 1", "btrfs", "/dev/vda3")
    assert current_root("1 1 0:20 / / rw - btrfs /dev/root rw\n").name == ""
    with pytest.raises(UnsupportedError):
        current_root("")


def test_another_file_system_is_unsupported(monkeypatch) -> None:
    monkeypatch.setattr(
        roots, "current_root", lambda: current_root("1 1 8:1 / / rw - ext4 /dev/vda3 rw\n")
    )
    with pytest.raises(UnsupportedError, match="the root is ext4"), roots.opened():
        pass


def test_a_machine_follows_a_release_or_a_channel(tmp_path) -> None:
    sources = tmp_path / "tegu.sources"
    sources.write_text("Types: deb\nURIs: https://x\nSuites: stable\nComponents: main\n")
    follow("26.12", sources)
    assert "Suites: 26.12\nComponents: snapshot\n" in sources.read_text()
    follow("stable", sources)
    assert "Suites: stable\nComponents: main\n" in sources.read_text()
    for odd in ("", "../x", "a b", "Stable"):
        with pytest.raises(UpgradeError, match="no name of a release"):
            follow(odd, sources)
    with pytest.raises(UpgradeError, match="follows no repository"):
        follow("stable", tmp_path / "none")


STATE = State("1", "upgrading", "", ".tegu/roots/1", "26.11", ("a.service",), {"vm.x": "1"})


def test_the_state_survives_and_tells_the_boot_units(tmp_path) -> None:
    assert read_state(tmp_path) is None
    write_state(STATE, tmp_path)
    assert read_state(tmp_path) == STATE
    trial = tmp_path / "var/lib/tegu/upgrade/trial"
    assert trial.exists()
    write_state(State("1", "done", "", "x", "26.12", packages={"a": ("1", "2")}), tmp_path)
    assert not trial.exists()
    assert read_state(tmp_path).packages == {"a": ("1", "2")}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"status": "odd"}', "null"])
def test_a_damaged_state_is_one_line(tmp_path, text) -> None:
    path = tmp_path / "var/lib/tegu/upgrade/state.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UpgradeError, match=r"state\.json is damaged"):
        read_state(tmp_path)


def test_history_leaves_out_what_was_cut_off(tmp_path) -> None:
    assert history(tmp_path) == []
    note(Event(1, "1", "began", "26.11"), tmp_path)
    path = tmp_path / "var/lib/tegu/upgrade/history.jsonl"
    path.write_text(path.read_text() + '{"at": 2, "id"')
    assert history(tmp_path) == [Event(1, "1", "began", "26.11")]


def test_data_comes_along_and_the_system_does_not(tmp_path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for root, text in ((new, "new"), (old, "old")):
        for name in ("home/me/file", "etc/conf", "srv/x"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    (old / "home/me/only-old").write_text("x")
    os.chmod(new / "home/me/file", 0o600)  # noqa: PTH101
    assert carry(new, old, ["/home", "/none", "/srv"]) == ["/home", "/srv"]
    assert (old / "home/me/file").read_text() == "new"
    assert (old / "home/me/file").stat().st_mode & 0o777 == 0o600
    assert not (old / "home/me/only-old").exists()
    assert (old / "etc/conf").read_text() == "old"
    assert sorted(p.name for p in old.iterdir()) == ["etc", "home", "srv"]


def test_which_data(tmp_path) -> None:
    config = tmp_path / "upgrade.toml"
    assert data_paths(config) == list(DATA)
    config.write_text('data = ["/var/lib/postgresql", "/home"]')
    assert data_paths(config) == [*DATA, "/var/lib/postgresql"]
    for text in ('data = ["/etc"]', 'data = ["/var/lib/dpkg"]', 'data = ["x"]', "data = 1",
                 'data = ["/a/../b"]', "x = 1", "[", 'data = ["/"]'):  # fmt: skip
        config.write_text(text)
        with pytest.raises(UpgradeError, match=r"upgrade\.toml"):
            data_paths(config)


def test_settings_that_got_lost_are_named(tmp_path) -> None:
    now = Path("/proc/sys/kernel/ostype").read_text().strip()
    assert health.changed_settings({"kernel.ostype": "Other"}, {}) == [
        f"kernel.ostype: Other before, {now} now"
    ]
    assert health.changed_settings({"kernel.ostype": now, "no.such": "1"}, {}) == []


def test_checks_of_the_owner_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(health, "failed_units", lambda: ["old.service", "new.service"])
    (tmp_path / "good").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bad").write_text("#!/bin/sh\necho no answer >&2\nexit 1\n")
    (tmp_path / "readme").write_text("not a program")
    for name in ("good", "bad"):
        (tmp_path / name).chmod(0o755)
    found = health.problems(["old.service"], checks=tmp_path, wait=False)
    assert found[0] == "the unit new.service has failed"
    assert "the check bad" in found[1] and "no answer" in found[1] and len(found) == 2


def test_the_state_is_plain_json(tmp_path) -> None:
    write_state(STATE, tmp_path)
    body = json.loads((tmp_path / "var/lib/tegu/upgrade/state.json").read_text())
    assert body["kept"] == ".tegu/roots/1"


def test_the_judge_is_no_job_of_the_boot_that_it_waits_for() -> None:
    """systemd is done with starting when no job is left; a oneshot service is one until it ends."""
    units = resources.files("tegu.host").joinpath("files/usr/lib/systemd/system")
    assert "\nType=exec\n" in units.joinpath("tegu-upgrade-judge.service").read_text()
