"""Images out of the store, into a directory of the user's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tegu.errors import StoreError, UsageError
from tegu.image.assemble import Assembled
from tegu.store import Store

__all__ = ["export", "export_image"]


def export(image: Assembled, store: Store, output: Path) -> list[Path]:
    """Put all files of an image into `output`, by hard link where that is possible.

    They are read-only: an image that was written to is no longer taken from the store.
    """
    return _place(image.files(store), output, link=True)


def export_image(
    image: Assembled, store: Store, output: Path, *, only: str | None = None
) -> list[Path]:
    """Copy an image's files, or those of one format, into `output`."""
    files = image.files(store)
    if only is not None:
        names = {f.name for f in image.images if f.format == only}
        if not names:
            formats = ", ".join(f.format for f in image.images)
            raise UsageError(f"the image has no format {only}: it has {formats}")
        files = [f for f in files if f.name in names or f.name.removesuffix(".json") in names]
    return _place(files, output, link=False)


def _place(files: Iterable[Path], output: Path, *, link: bool) -> list[Path]:
    placed = []
    for source in files:
        target = output / source.name
        temporary = output / f".{source.name}.tmp"
        try:
            output.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            _copy(source, temporary, link=link)
            if target.is_dir() and not target.is_symlink():
                _remove(target)
            temporary.rename(target)
        except OSError as e:
            raise StoreError(f"cannot write {target}: {e.strerror}") from e
        finally:
            _remove(temporary)
        placed.append(target)
    return placed


def _copy(source: Path, target: Path, *, link: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
        return
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system: copied
    _copy_sparse(source, target)


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy data extents only (lseek(2), SEEK_DATA): a raw image is mostly hole."""
    size = source.stat().st_size
    with source.open("rb") as src, target.open("wb") as dst:
        dst.truncate(size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(src.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: nothing but hole from here
            end = os.lseek(src.fileno(), offset, os.SEEK_HOLE)
            while offset < end:
                offset += os.copy_file_range(
                    src.fileno(), dst.fileno(), end - offset, offset, offset
                )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
