"""The protocol of an upgrade, cut off at each of its steps in turn: always a whole machine.

The steps are those of `tegu.host.upgrade.run`; the disk under it is directories with a default, as
btrfs has subvolumes with one. What a real btrfs and real power do is in test_upgrade_guest.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tegu.errors import UpgradeError
from tegu.host.upgrade import apt, health, run, state
from tegu.host.upgrade.apt import Update
from tegu.host.upgrade.carry import carry


class PowerCut(BaseException):
    """The machine is off."""


class Disk:
    """Roots in directories; each change counts, and the one numbered `cut` is never made."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.boots = ""
        self.current = ""
        self.cut: int | None = None
        self.changes = 0
        self.wrong: list[str] = []
        for name, text in (("one", "1"), ("two", "1"), ("home/data", "old")):
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text)

    def change(self) -> None:
        self.changes += 1
        if self.cut is not None and self.changes > self.cut:
            raise PowerCut

    # What `Roots` does.

    def path(self, name: str) -> Path:
        return self.top / name

    def names(self) -> list[str]:
        return ["", *(f".tegu/roots/{p.name}" for p in (self.top / ".tegu/roots").glob("*"))]

    def default(self) -> str:
        return self.boots

    def set_default(self, name: str) -> None:
        self.change()
        self.boots = name

    def snapshot(self, name: str) -> None:
        self.change()
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(
            self.path(self.current), self.path(name), ignore=shutil.ignore_patterns(".tegu")
        )

    def drop(self, name: str) -> None:
        self.change()
        shutil.rmtree(self.path(name))

    def sync(self) -> None:
        """Directories are on the disk already."""

    # The machine around it.

    @property
    def root(self) -> Path:
        return self.path(self.current)

    def boot(self) -> None:
        """Start the machine; an upgrade on trial is judged, and a bad one starts it again."""
        for _ in range(4):
            self.current = self.boots
            run.boot_begins()
            if run.boot_proved(reboot=False) != "failed":
                return
        pytest.fail("it starts again and again")

    def version(self) -> str:
        one, two = (self.root / "one").read_text(), (self.root / "two").read_text()
        assert one == two, "half of an upgrade"
        return one


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(tmp_path / "top")

    @contextmanager
    def opened() -> Iterator[Disk]:
        yield made

    def write(new: state.State, root: Path | None = None) -> None:
        made.change()
        state.write_state(new, root or made.root)

    def install(updates: object) -> None:
        for name in ("one", "two"):
            made.change()
            (made.root / name).write_text(str(int((made.root / name).read_text()) + 1))
        (made.root / "home/data").write_text("new")

    monkeypatch.setattr(run, "opened", opened)
    monkeypatch.setattr(run, "read_state", lambda root=None: state.read_state(root or made.root))
    monkeypatch.setattr(run, "write_state", write)
    monkeypatch.setattr(run, "note", lambda event: state.note(event, made.root))
    monkeypatch.setattr(run, "carry", lambda source, _, paths: carry(source, made.root, paths))
    monkeypatch.setattr(run, "data_paths", lambda: ["/home"])
    monkeypatch.setattr(run, "_room", lambda roots: None)
    monkeypatch.setattr(run, "_release", lambda: "26.11")
    monkeypatch.setattr(apt, "refresh", lambda: None)
    monkeypatch.setattr(apt, "available", lambda **_: [Update("x", "1", "2", "tegu")])
    monkeypatch.setattr(apt, "install", install)
    monkeypatch.setattr(health, "problems", lambda *a, wait=True, **k: made.wrong if wait else [])
    monkeypatch.setattr(health, "failed_units", list)
    monkeypatch.setattr(health, "effective_settings", dict)
    return made


def test_forwards(disk: Disk) -> None:
    assert run.upgrade().status == "trial"
    with pytest.raises(UpgradeError, match="has not proved itself"):
        run.upgrade()
    disk.boot()
    assert disk.version() == "2" and disk.current == "" and disk.boots == ""
    assert state.read_state(disk.root).status == "done"
    assert [e.what for e in state.history(disk.root)] == ["began", "installed", "trying", "done"]


def test_only_a_kernel_is_left_to_apt(disk: Disk, monkeypatch) -> None:
    kernel = Update("linux-image-6.12.999-cloud-amd64", "", "6.12.999-1", "Debian:13")
    monkeypatch.setattr(apt, "available", lambda **_: [kernel])
    done = run.upgrade()
    assert (done.status, done.kernels, disk.changes) == ("current", (kernel,), 0)


def test_a_bad_one_goes_back_by_itself_and_data_comes_along(disk: Disk) -> None:
    run.upgrade()
    disk.wrong = ["the unit x.service has failed"]
    disk.boot()
    assert disk.version() == "1" and disk.current == disk.boots != ""
    assert (disk.root / "home/data").read_text() == "new"
    last = state.history(disk.root)[-1]
    assert last.what == "rolled back" and "x.service" in last.detail
    # And from there forwards again.
    disk.wrong = []
    run.upgrade()
    disk.boot()
    assert disk.version() == "2"


def test_back_by_hand(disk: Disk) -> None:
    with pytest.raises(UpgradeError, match="no upgrade to go back from"):
        run.roll_back()
    run.upgrade()
    disk.boot()
    run.roll_back()
    disk.boot()
    assert disk.version() == "1"
    with pytest.raises(UpgradeError, match="no upgrade to go back from"):
        run.roll_back()


def test_apt_that_fails_goes_back_at_the_next_start(disk: Disk, monkeypatch) -> None:
    def broken(updates: object) -> None:
        (disk.root / "one").write_text("half")
        raise UpgradeError("dpkg: error")

    whole = apt.install
    monkeypatch.setattr(apt, "install", broken)
    with pytest.raises(UpgradeError, match="the upgrade failed: dpkg: error"):
        run.upgrade()
    with pytest.raises(UpgradeError, match="did not end well"):
        run.upgrade()
    monkeypatch.setattr(apt, "install", whole)
    disk.boot()
    assert disk.version() == "1"
    assert state.read_state(disk.root).status == "rolled-back"


def test_power_cut_at_every_step_leaves_a_whole_machine(disk: Disk, tmp_path: Path) -> None:
    """From the first change of the upgrade to the last of the boot that proves it, and again."""
    pristine = tmp_path / "pristine"
    shutil.copytree(disk.top, pristine)
    seen = set()
    for cut in range(100):
        shutil.rmtree(disk.top)
        shutil.copytree(pristine, disk.top)
        disk.boots = disk.current = ""
        disk.cut, disk.changes = cut, 0
        try:
            run.upgrade()
            disk.boot()
        except PowerCut:
            disk.cut = None
            disk.boot()
            seen.add(disk.version())
            # What was cut can be done again, to its end.
            if disk.version() == "1":
                run.upgrade()
                disk.boot()
            assert disk.version() == "2", f"after a cut at change {cut}"
            continue
        break
    else:
        pytest.fail("it never ends")
    assert cut > 8 and seen == {"1", "2"}


def test_two_cuts_in_a_row(disk: Disk, tmp_path: Path) -> None:
    """The way back is cut as well."""
    pristine = tmp_path / "pristine"
    shutil.copytree(disk.top, pristine)
    for first in range(12):
        for second in range(0, 6, 2):
            shutil.rmtree(disk.top)
            shutil.copytree(pristine, disk.top)
            disk.boots = disk.current = ""
            for cut, what in ((first, run.upgrade), (second, disk.boot)):
                disk.cut, disk.changes = cut, 0
                try:
                    what()
                except PowerCut:
                    continue
            disk.cut = None
            disk.boot()
            assert disk.version() in ("1", "2")
