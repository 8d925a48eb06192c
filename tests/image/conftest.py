"""A small real system, built once, and what tests need to vary it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tegu.definition import Definition, load
from tegu.image import BuildOptions, Built, build_locked
from tegu.image.front import lock_for
from tegu.packages import Lock, make_lock
from tegu.packages.deb_write import DebEntry, write_deb
from tegu.store import Store

SMALL = """\
[system]
name = "small"
version = "1"
[packages]
install = ["adduser", "python3-minimal", "libpam-systemd", "systemd-sysv"]
tegu = false
{packages}
[kernel]
package = "none"
[image]
formats = ["tar"]
{rest}
"""


@dataclasses.dataclass(frozen=True)
class Small:
    """A definition on disk with its lock; `build` builds it, `with_packages` changes it."""

    directory: Path
    store: Store

    def write(self, *, packages: str = "", rest: str = "") -> Path:
        path = self.directory / "tegu.toml"
        path.write_text(SMALL.format(packages=packages, rest=rest))
        return path

    def load(self) -> tuple[Definition, Lock]:
        return lock_for(
            self.directory / "tegu.toml",
            profile=None,
            lock_path=None,
            locked=False,
            store=self.store,
        )

    def build(
        self, *, clean: bool = False, on_event: Callable[[object], None] = lambda _: None
    ) -> Built:
        definition, lock = self.load()
        options = BuildOptions(reuse_trees=not clean, reuse_images=not clean)
        return build_locked(
            definition,
            lock,
            self.store,
            subject=self.directory / "tegu.toml",
            options=options,
            on_event=on_event,
        )


def outcomes(built: Built) -> dict[str, str]:
    """Step name to outcome."""
    return {step.name: step.outcome for step in built.steps}


def image_hash(built: Built) -> str:
    return built.images.images[0].sha256


# What a build reads but never decides by.
_SHARED = ("blobs", "partial", "indexes", "packages-1", "tools-1", "bytecode-1")


@pytest.fixture(scope="session")
def own_store(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the shared one's downloads and this run's own trees and images.

    Whether a step runs is what many of these tests ask: an earlier run must not answer.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "store"
    with shared_store.locked("tests-own-store"):
        if not root.exists():
            root.mkdir()
            near = root.stat().st_dev == shared_store.root.stat().st_dev
            for name in _SHARED if near else ("indexes",):
                (shared_store.root / name).mkdir(exist_ok=True)
                (root / name).symlink_to(shared_store.root / name)
    return Store(root)


@pytest.fixture(scope="session")
def small_lock(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lock of the small system, made once: its date is every test's date."""
    directory = tmp_path_factory.mktemp("lock")
    path = directory / "tegu.toml"
    path.write_text(SMALL.format(packages="", rest=""))
    lock = make_lock(load(path), shared_store)
    # One date for all workers: trees made by one are good for the others.
    dataclasses.replace(lock, timestamp=lock.timestamp // 604800 * 604800).write(
        directory / "tegu.lock"
    )
    return directory / "tegu.lock"


@pytest.fixture
def small(own_store: Store, tmp_path: Path, small_lock: Path) -> Small:
    """The small system in a directory of its own; its tree is in the store."""
    directory = tmp_path / "small"
    directory.mkdir()
    system = Small(directory, own_store)
    system.write()
    (directory / "tegu.lock").write_bytes(small_lock.read_bytes())
    with own_store.locked("tests-small"):
        system.build()
    return system


@pytest.fixture
def deb(tmp_path: Path) -> Callable[..., Path]:
    """Make a package `name` of one version, with files and scripts."""

    def make(
        name: str,
        version: str,
        files: dict[str, str],
        *,
        scripts: dict[str, str] | None = None,
        conffiles: tuple[str, ...] = (),
        fields: dict[str, str] | None = None,
    ) -> Path:
        control = {
            "Package": name,
            "Version": version,
            "Architecture": "all",
            "Maintainer": "Nobody <nobody@example.org>",
            "Description": "a package of the tests",
            **(fields or {}),
        }
        entries = [DebEntry(path, content.encode()) for path, content in files.items()]
        return write_deb(
            tmp_path / f"{name}_{version}_all.deb",
            control,
            entries,
            timestamp=1_700_000_000,
            scripts=scripts,
            conffiles=conffiles,
        )

    return make
