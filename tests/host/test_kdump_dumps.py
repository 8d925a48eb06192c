"""The directory of dumps: kept ready, named, bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tegu.errors import TeguError
from tegu.host.kdump.dumps import INCOMING, list_dumps, prepare, prune, rescue


def dump(directory: Path, name: str, core: int | None = 0) -> None:
    place = directory / name
    place.mkdir(parents=True)
    (place / "dmesg.txt").write_text("log\n")
    if core is not None:
        (place / "vmcore").write_bytes(b"x" * core)


def test_none(tmp_path: Path) -> None:
    assert list_dumps(tmp_path / "missing") == []
    assert rescue(tmp_path) is None


def test_space_is_kept_once(tmp_path: Path) -> None:
    prepare(tmp_path, log_bytes=1 << 20, about={"kernel": "6.12"})
    log = tmp_path / INCOMING / "dmesg.txt"
    first = log.stat()
    assert first.st_size == 1 << 20
    assert first.st_blocks * 512 >= 1 << 20
    prepare(tmp_path, log_bytes=1 << 20, about={"kernel": "6.12"})
    assert log.stat().st_mtime_ns == first.st_mtime_ns
    assert list_dumps(tmp_path) == []
    assert (tmp_path / INCOMING).stat().st_mode & 0o777 == 0o700


def test_a_dump_without_a_name_gets_one(tmp_path: Path) -> None:
    prepare(tmp_path, log_bytes=1 << 20, about={})
    incoming = tmp_path / INCOMING
    with (incoming / "dmesg.txt").open("r+b") as f:
        f.write(b"[    1.0] Kernel panic\n")
    (incoming / "vmcore.partial").write_bytes(b"half")
    os.utime(incoming / "dmesg.txt", (1_700_000_000, 1_700_000_000))
    prepare(tmp_path, log_bytes=1 << 20, about={})
    (found,) = list_dumps(tmp_path)
    assert found.name == "2023-11-14T22-13-20Z"
    assert (found.path / "dmesg.txt").read_bytes() == b"[    1.0] Kernel panic\n"
    assert found.core is None and not (found.path / "vmcore.partial").exists()
    assert (incoming / "dmesg.txt").stat().st_size == 1 << 20


def test_old_dumps_go(tmp_path: Path) -> None:
    for day in range(1, 6):
        dump(tmp_path, f"2026-01-0{day}T00-00-00Z", 1000)
    removed = prune(tmp_path, keep=3, max_size=2500)
    assert removed == [
        "2026-01-02T00-00-00Z",
        "2026-01-01T00-00-00Z",
        "2026-01-03T00-00-00Z/vmcore",
    ]
    assert [(d.name[8:10], d.core_size) for d in list_dumps(tmp_path)] == [
        ("05", 1000),
        ("04", 1000),
        ("03", None),
    ]


def test_the_newest_stays_whatever_its_size(tmp_path: Path) -> None:
    dump(tmp_path, "2026-01-01T00-00-00Z", 5000)
    assert prune(tmp_path, keep=1, max_size=10) == []


def test_no_space_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TeguError, match=r"cannot keep 1024 KiB for the log in .*: No space left"):
        prepare(tmp_path, log_bytes=1 << 20, about={})
