"""What every builder of the bench builds, and the cases in which it is measured."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bench.build.mirror import Mirror
from bench.common import Usage

from tegu.process import run

__all__ = [
    "ADDED",
    "CASES",
    "PACKAGES",
    "SUITE",
    "Builder",
    "Case",
    "Place",
    "discard",
    "restore",
    "save",
    "settle",
]

SUITE = "trixie"

PACKAGES = (
    "cloud-init",
    "dbus",
    "linux-image-cloud-amd64",
    "login",
    "openssh-server",
    "systemd",
    "systemd-sysv",
    "udev",
)
"""The system: what a cloud machine needs at least, recommendations left out.

`login` is of priority required: some builders add those by themselves, others only essential ones.
"""

SETTLE = 61
"""Seconds; fs/ext4/ialloc.c, RECENTCY_MIN."""

ADDED = "less"
"""The one package more: small, with a maintainer script (an alternative)."""

Case = Literal["cold", "warm", "unchanged", "file", "package", "update"]

CASES: dict[Case, str] = {
    "cold": "cold: nothing kept",
    "warm": "full build, downloads kept",
    "unchanged": "nothing changed",
    "file": "one file changed",
    "package": "one package added",
    "update": "one package updated",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a builder may work: `work` is empty and its own, `cache` survives between benches."""

    work: Path
    cache: Path
    mirror: Mirror

    @property
    def trash(self) -> Path:
        """Where to put what is no longer needed; see `discard`."""
        return self.work.parent / "discarded"


class Builder(Protocol):
    """One of the compared programs."""

    name: str
    makes: str
    """The kind of output, for the reader of the table."""

    def version(self) -> str:
        """Return the program's version as it says itself."""

    def prepare(self, case: Case) -> None:
        """Bring the builder's state to where `case` starts; not measured."""

    def build(self, case: Case) -> Usage:
        """Do the one measured build of `case`, right after `prepare(case)`."""

    def folders(self) -> list[Path]:
        """Return what the builder keeps on disk, caches and output together."""


def discard(folder: Path, trash: Path) -> None:
    """Take `folder` out of the way, into `trash`, which is deleted when the bench ends.

    For some minutes ext4 avoids the numbers of deleted files, and creating files costs three times
    as much meanwhile: a builder must not pay for what the bench, or the one before it, deleted.
    """
    if folder.exists():
        trash.mkdir(exist_ok=True)
        folder.rename(Path(tempfile.mkdtemp(dir=trash)) / folder.name)


def settle() -> None:
    """Wait until what was deleted no longer costs anything: a minute after it is on the disk."""
    os.sync()
    time.sleep(SETTLE)


def save(folder: Path, kept: Path, trash: Path) -> None:
    """Keep a copy of `folder` at `kept`, with owners, modes, times, hard links and holes."""
    discard(kept, trash)
    kept.parent.mkdir(parents=True, exist_ok=True)
    run(["cp", "-a", "--sparse=always", "--", folder, kept], timeout=900)


def restore(folder: Path, kept: Path, trash: Path) -> None:
    """Bring `folder` back to what `save` kept."""
    discard(folder, trash)
    run(["cp", "-a", "--sparse=always", "--", kept, folder], timeout=900)
