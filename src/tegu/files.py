"""Files that are whole or not there: written under a temporary name, synced, renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["atomic_copy", "atomic_file", "writable_directory", "write_atomic"]


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o644, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that appears at `path` only when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fchmod(f.fileno(), mode)
            if sync:
                os.fsync(f.fileno())
        Path(temporary).rename(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def write_atomic(path: Path, data: str | bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_file(path, mode=mode) as f:
        f.write(data.encode() if isinstance(data, str) else data)


def atomic_copy(source: Path, path: Path) -> Path:
    """Copy the file `source` to `path`, whole or not at all; returns `path`."""
    with source.open("rb") as data, atomic_file(path) as f:
        shutil.copyfileobj(data, f, 1 << 20)
    return path


def writable_directory(path: Path) -> None:
    """Make the directory `path` unless it is there; raises OSError when it cannot be written."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".probe.", dir=path):
        pass
