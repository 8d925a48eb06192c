"""Sparse files: where their data is, copied without filling the holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tegu.errors import BuildError

__all__ = ["data_extents", "put_into"]


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of all that is not a hole, in order, in bytes (lseek(2), SEEK_DATA)."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end
        at = end


def put_into(
    source: Path, target: Path, offset: int, keep: Sequence[tuple[int, int]] | None = None
) -> None:
    """Copy the data of `source` to `offset` of the existing file `target`, and remove `source`.

    Holes stay holes, so that place of the target must never have been written to. With `keep`
    (ranges, sorted, which do not overlap) all else is a hole as well.
    """
    with source.open("rb") as a, target.open("r+b") as b:
        extents = list(data_extents(a.fileno(), os.fstat(a.fileno()).st_size))
        for start, end in extents if keep is None else _common(extents, keep):
            copy_range(a.fileno(), b.fileno(), start, end, offset + start)
    source.unlink()


def _common(
    ours: Sequence[tuple[int, int]], theirs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield what two sorted lists of ranges have in common."""
    i = j = 0
    while i < len(ours) and j < len(theirs):
        start, end = max(ours[i][0], theirs[j][0]), min(ours[i][1], theirs[j][1])
        if start < end:
            yield start, end
        if ours[i][1] < theirs[j][1]:
            i += 1
        else:
            j += 1


def copy_range(source: int, target: int, start: int, end: int, to: int) -> None:
    """Copy bytes between open files, in the kernel (copy_file_range(2))."""
    while start < end:
        done = os.copy_file_range(source, target, end - start, start, to)
        if done == 0:
            raise BuildError("a file became shorter while it was copied")
        start, to = start + done, to + done
