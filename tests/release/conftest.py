"""Locks and workshops made on the spot."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tegu.packages import Lock, LockedPackage
from tegu.release.manifest import File, Manifest
from tegu.release.numbers import Number
from tegu.release.workshop import Workshop


def package(name: str, version: str, source: str = "", source_version: str = "") -> LockedPackage:
    return LockedPackage(
        name=name,
        version=version,
        architecture="amd64",
        size=1000,
        sha256=hashlib.sha256(f"{name}{version}".encode()).hexdigest(),
        filename=f"pool/{name}.deb",
        repository="trixie",
        source=source or name,
        source_version=source_version or version,
        installed_size=10,
    )


def lock_of(*packages: LockedPackage) -> Lock:
    return Lock("0" * 64, "x86-64", 1_795_000_000, (), tuple(packages), ())


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    pytest.importorskip("tuf", reason="python-tuf is not installed: pip install 'tegu[release]'")
    return Workshop.create(tmp_path / "shop")


def small_release(shop: Workshop, number: str, text: str = "notes", **more) -> Manifest:
    """Put a release of one file into the workshop, as `prepare` would."""
    work = shop.work(Number.parse(number))
    (work / "files").mkdir(parents=True, exist_ok=True)
    (work / "files/notes.md").write_text(text)
    data = text.encode()
    values = {
        "number": number,
        "date": "2026-11-21",
        "previous": None,
        "files": (File("notes.md", "notes", len(data), hashlib.sha256(data).hexdigest()),),
        "locks": {},
        "snapshot": None,
        "reports": (),
        "figures": {},
        "cves": None,
    }
    manifest = Manifest(**{**values, **more})
    manifest.write(work / "manifest.json")
    return manifest
