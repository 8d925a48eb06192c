"""What a directory laid over the tree holds: the one walk that both digest and build go by."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tegu.definition.problems import shown_path
from tegu.errors import DefinitionError

__all__ = ["IGNORED", "OverlayEntry", "overlay_entries"]

IGNORED = frozenset({".gitkeep"})
"""Names left out: they only keep empty directories in version control."""


@dataclass(frozen=True, slots=True)
class OverlayEntry:
    """One thing in an overlay directory.

    `path` is relative to it, and so to the root of the tree. `mode` is 0o755 for directories and
    for files that their owner may execute, 0o644 for other files (as in git, so that a checkout's
    umask does not matter), 0o777 for symbolic links, whose text is `target`.
    """

    path: str
    kind: Literal["directory", "file", "symlink"]
    mode: int
    source: Path
    target: str | None = None


def overlay_entries(directory: Path) -> Iterator[OverlayEntry]:
    """Yield what is under `directory`, sorted by path, every directory before its content.

    Raises DefinitionError when something can not be read, or is a device, socket or pipe.
    """
    yield from _walk(directory, "")


def _walk(directory: Path, prefix: str) -> Iterator[OverlayEntry]:
    try:
        with os.scandir(directory) as found:
            children = sorted(found, key=lambda entry: os.fsencode(entry.name))
        for child in children:
            if child.name in IGNORED:
                continue
            source = directory / child.name
            path = f"{prefix}{child.name}"
            status = child.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                yield OverlayEntry(path, "symlink", 0o777, source, str(source.readlink()))
            elif stat.S_ISDIR(status.st_mode):
                yield OverlayEntry(path, "directory", 0o755, source)
                yield from _walk(source, f"{path}/")
            elif stat.S_ISREG(status.st_mode):
                mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
                yield OverlayEntry(path, "file", mode, source)
            else:
                raise DefinitionError(
                    f"{shown_path(source)}: is neither a file, a directory nor a symbolic link",
                    hint="device nodes, sockets and pipes are made by the running system",
                )
    except OSError as e:
        where = shown_path(Path(e.filename)) if e.filename else shown_path(directory)
        raise DefinitionError(f"{where}: can not be read: {e.strerror}") from e
