"""Records of machines: found by other processes, and gone when their machines are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tegu.emulator.child import Child, ProcessId, current_process
from tegu.errors import MachineError, UsageError
from tegu.lab.directory import remove_directory, short_directory
from tegu.lab.registry import MachineRecord, Registry


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Child]:
    child = Child(["sleep", "600"], stderr=tmp_path / "sleep.err")
    yield child
    child.kill()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        monkeypatch.setenv("TMPDIR", base)
        yield short_directory()


def test_a_record_survives_json(place: Path) -> None:
    record = MachineRecord(
        "web",
        place,
        current_process(),
        process=ProcessId(3, 4),
        identities=(Path("/k"),),
        ssh_port=2222,
        forwards=("1:2",),
        home=Path("/h"),
    )
    assert MachineRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', '{"directory": "/x"}'])
def test_a_damaged_record_is_dropped(registry: Registry, text: str) -> None:
    registry.directory.mkdir(parents=True)
    (registry.directory / "bad.json").write_text(text)
    assert registry.all() == []
    assert not (registry.directory / "bad.json").exists()


def test_names_are_made_and_taken(registry: Registry, place: Path) -> None:
    first = registry.claim(None, "Tegu_26.11 x64", place)
    second = registry.claim(None, "Tegu_26.11 x64", place)
    assert (first.name, second.name) == ("tegu-26-11-x64-1", "tegu-26-11-x64-2")
    assert registry.claim("web", "x", place).name == "web"
    with pytest.raises(MachineError, match="named web runs already"):
        registry.claim("web", "x", place)
    for bad in ("", "Web", "a/b", "../x", "a" * 41, "-a", "a_b"):
        with pytest.raises(UsageError, match="not a machine name"):
            registry.claim(bad, "x", place)


def test_many_claims_at_once_give_many_names(registry: Registry, place: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: registry.claim(None, "m", place).name, range(24)))
    assert len(set(names)) == 24


def test_an_unknown_machine_is_answered_with_the_known(registry: Registry, place: Path) -> None:
    registry.claim("web", "x", place)
    with pytest.raises(MachineError, match="no machine named nope") as caught:
        registry.get("nope")
    assert "web" in (caught.value.hint or "")


def test_a_machine_in_the_background_lives_as_long_as_its_process(
    registry: Registry, place: Path, sleeper: Child
) -> None:
    record = replace(registry.claim("web", "x", place), owner=None, process=sleeper.id)
    registry.save(record)
    assert [r.name for r in registry.all()] == ["web"]
    sleeper.kill()
    assert registry.all() == []
    assert not place.exists()


def test_a_machine_whose_owner_died_is_ended(
    registry: Registry, place: Path, sleeper: Child
) -> None:
    owner = subprocess.Popen(["sleep", "600"])
    identity = ProcessId.of(owner.pid)
    record = replace(registry.claim("web", "x", place), owner=identity, process=sleeper.id)
    registry.save(record)
    assert [r.name for r in registry.all()] == ["web"]
    owner.kill()
    owner.wait()
    assert registry.all() == []
    assert sleeper.wait(10) == -signal.SIGKILL
    assert not place.exists()


def test_a_recycled_pid_is_not_taken_for_the_machine(
    registry: Registry, place: Path, sleeper: Child
) -> None:
    other = ProcessId(sleeper.id.pid, sleeper.id.started - 1)
    registry.save(replace(registry.claim("web", "x", place), owner=None, process=other))
    assert registry.all() == []
    assert sleeper.id.alive()
    other.kill()
    assert sleeper.id.alive()


def test_records_are_private(registry: Registry, place: Path) -> None:
    registry.claim("web", "x", place)
    assert (registry.directory / "web.json").stat().st_mode & 0o777 == 0o600
    assert place.stat().st_mode & 0o777 == 0o700
    assert json.loads((registry.directory / "web.json").read_text())["name"] == "web"


def test_only_our_directories_are_removed(tmp_path: Path) -> None:
    other = tmp_path / "precious"
    other.mkdir()
    remove_directory(other)
    assert other.exists()
    link = tmp_path / "tegu-link"
    link.symlink_to(other)
    remove_directory(link)
    assert other.exists()


def test_socket_paths_stay_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    made = short_directory()
    try:
        assert len(str(made / "console.sock")) < 100
    finally:
        remove_directory(made)
    assert not made.exists()


def test_a_registry_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot use"):
        Registry(tmp_path / "file" / "machines").all()


def test_processes_are_told_apart_and_waited_for(sleeper: Child) -> None:
    assert sleeper.id.alive()
    assert not sleeper.id.wait(0.05)
    sleeper.id.kill()
    assert sleeper.id.wait(10)
    assert not sleeper.id.alive()  # a zombie until it is reaped
    assert sleeper.wait(10) == -signal.SIGKILL
    assert ProcessId.of(2**22 + 1) is None
    assert current_process().pid == os.getpid()


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot start /none/qemu: No such file"):
        Child(["/none/qemu"], stderr=tmp_path / "err")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("", ""),
        ("qemu-system-x: warning: old\nqemu-system-x: -device nvme,a=b: no drive\n", "no drive"),
        ("qemu-system-x: cannot set up guest memory 'ram': Cannot allocate memory", None),
        ("Segmentation fault\n", "Segmentation fault"),
    ],
)
def test_what_qemu_complains_of(tmp_path: Path, said: str, complaint: str | None) -> None:
    child = Child(
        [sys.executable, "-c", "import sys; sys.stderr.write(sys.argv[1])", said],
        stderr=tmp_path / "err",
    )
    child.wait(20)
    expected = "cannot set up guest memory 'ram': Cannot allocate memory"
    assert child.complaint() == (expected if complaint is None else complaint)
