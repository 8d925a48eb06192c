"""What people and services wrote since the snapshot comes along when the machine goes back.

Copies share their blocks with the originals (reflink), so that they take no room and little time.
"""

from __future__ import annotations

from pathlib import Path

from tegu.errors import UpgradeError
from tegu.host.upgrade.config import CONFIG, read_config
from tegu.process import run

__all__ = ["CONFIG", "DATA", "carry", "data_paths"]

DATA = ("/home", "/root", "/srv", "/var/log")
"""Carried without being named. What a service keeps below /var/lib is its owner's to decide: an
older version may not read what a newer one wrote. `data = [...]` in CONFIG adds to these."""


def data_paths(config: Path = CONFIG) -> list[str]:
    """Return the directories that are carried; UpgradeError when the configuration is wrong."""
    named = read_config(config).data
    for path in named:
        parts = Path(path).parts
        if not path.startswith("/") or ".." in parts or len(parts) < 2:
            raise UpgradeError(f"{config}: data: {path!r} is no directory that can be carried")
        if parts[1] in ("usr", "boot", "etc", "proc", "sys", "dev", "run") or path.startswith(
            "/var/lib/dpkg"
        ):
            raise UpgradeError(f"{config}: data: {path} is the system's, and goes back with it")
    return list(dict.fromkeys([*DATA, *named]))


def carry(source: Path, target: Path, paths: list[str]) -> list[str]:
    """Copy `paths` from the root `source` over those of the root `target`; returns those done.

    Each appears in one step: a power cut in between leaves the old or the new.
    """
    done = []
    for path in paths:
        origin, place = source / path.lstrip("/"), target / path.lstrip("/")
        if not origin.is_dir() or origin.is_symlink():
            continue
        fresh = place.with_name(f".{place.name}.tegu-new")
        old = place.with_name(f".{place.name}.tegu-old")
        for left in (fresh, old):
            run(["rm", "-rf", "--one-file-system", left], timeout=3600)
        run(["cp", "-a", "--reflink=auto", origin, fresh], timeout=3600)
        if place.exists():
            place.rename(old)
        fresh.rename(place)
        run(["rm", "-rf", "--one-file-system", old], timeout=3600)
        done.append(path)
    return done
