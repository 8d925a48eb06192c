"""The directory of a repository: opened, locked, cleaned of what a killed run left."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tegu.errors import RepositoryError, StoreError
from tegu.files import write_atomic
from tegu.packages.repo.catalogue import Catalogue, Collection
from tegu.packages.repo.settings import Settings, check_name, load_settings, template

__all__ = ["Repository", "disk_error"]

_SETTINGS = "repo.toml"


class Repository:
    """An open repository; use it as a context manager. `public` is what a web server serves."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.settings: Settings = load_settings(self.root / _SETTINGS)
        self.public = self.root / "public"
        self.tmp = self.root / "tmp"
        self.catalogue = Catalogue(self.root / "state.db")

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        name: str,
        channels: Sequence[str],
        architectures: Sequence[str],
        signers: Sequence[str],
    ) -> Repository:
        """Make a new repository in `root`; raises RepositoryError when one is there."""
        for channel in channels:
            check_name(channel, "channel")
        if (root / _SETTINGS).exists():
            raise RepositoryError(f"{root} is a repository already")
        text = template(name, tuple(channels), tuple(architectures), tuple(signers))
        for directory in (root / "public" / "pool", root / "tmp"):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomic(root / _SETTINGS, text)
        return cls(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.catalogue.close()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes the repository.

        Raises RepositoryError at once when another process does. What a killed one left behind is
        removed first.
        """
        try:
            handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise disk_error(e, self.root / "lock") from e
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 64, 0).decode(errors="replace").strip() or "unknown"
                raise RepositoryError(
                    f"{self.root}: another process is changing it (pid {holder})",
                    hint="try again when it has ended; nothing was changed",
                ) from None
            if os.fstat(handle).st_size:
                self._sweep()
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            self._ensure_channels()
            try:
                yield
            except OSError as e:
                raise disk_error(e, self.root) from e
            finally:
                os.ftruncate(handle, 0)  # on every way out but a kill: nothing was left behind
        finally:
            os.close(handle)

    def _ensure_channels(self) -> None:
        there = {c.name: c for c in self.catalogue.collections()}
        for name in self.settings.channels:
            if name not in there:
                with self.catalogue.change():
                    self.catalogue.create(name, None, int(time.time()))
            elif there[name].origin is not None:
                raise RepositoryError(f"{name} is a snapshot, it cannot be a channel as well")

    def _sweep(self) -> None:
        """Remove what a killed process left: temporary files, and pool files never noted."""
        for path in self.tmp.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for orphan in self.orphans():
            orphan.unlink(missing_ok=True)

    def orphans(self) -> list[Path]:
        """Return the files of the pool that the catalogue does not know."""
        known = {row[0] for row in self.catalogue.query("SELECT path FROM package WHERE pooled")}
        found = []
        for folder, _, names in os.walk(self.public / "pool"):
            for name in names:
                path = Path(folder) / name
                if path.relative_to(self.public).as_posix() not in known:
                    found.append(path)
        return sorted(found)

    def channel(self, name: str) -> str:
        """Return `name` when it is a channel of the settings; raises RepositoryError."""
        if name not in self.settings.channels:
            raise RepositoryError(
                f"there is no channel {name}",
                hint=f"there are: {', '.join(self.settings.channels)}",
            )
        return name

    def collection(self, name: str) -> Collection:
        """Return the channel or snapshot `name`; raises RepositoryError."""
        found = self.catalogue.collection(name)
        if found is None:
            names = [c.name for c in self.catalogue.collections()] or self.settings.channels
            raise RepositoryError(
                f"there is no channel or snapshot {name}", hint=f"there are: {', '.join(names)}"
            )
        return found

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a temporary directory on the file system of `public`, removed in the end."""
        import tempfile

        self.tmp.mkdir(exist_ok=True)
        path = Path(tempfile.mkdtemp(dir=self.tmp))
        try:
            yield path
        finally:
            with suppress(OSError):
                shutil.rmtree(path)


def disk_error(e: OSError, path: Path | str) -> StoreError:
    """Return `e` as one line that says what to do."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left on the disk that holds {path}",
            hint="nothing that is published was changed; free some and do it again",
        )
    return StoreError(f"{e.filename or path}: {e.strerror or e}")
