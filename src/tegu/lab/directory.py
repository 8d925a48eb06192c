"""Private directories of machines: made short, removed only when they are ours."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from tegu.errors import MachineError

__all__ = ["PREFIX", "remove_directory", "short_directory"]

PREFIX: Final = "tegu-"
"""How their names begin; no other directory is ever removed."""


def short_directory() -> Path:
    """Make a private directory whose path leaves room for socket names (108 bytes, unix(7)).

    In $TMPDIR, else /var/tmp, which is on a disk: the layers of machines grow.
    """
    wanted = os.environ.get("TMPDIR", "/var/tmp")
    base = wanted if len(wanted) <= 50 and Path(wanted).is_dir() else "/var/tmp"
    try:
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    except OSError as e:
        raise MachineError(f"cannot make a directory in {base}: {e.strerror}") from e


def remove_directory(directory: Path) -> None:
    """Remove a machine's private directory, and refuse any other."""
    if directory.name.startswith(PREFIX) and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)
