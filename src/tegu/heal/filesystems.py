"""Mounted file systems that have a size, and files that are deleted but still open."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tegu.heal.snapshot import text
from tegu.linux.mountinfo import parse_mountinfo

__all__ = ["DeletedFile", "FileSystem", "busiest_directory", "deleted_files", "file_systems"]

_PATIENCE = 2.0  # seconds: statvfs(2) of a dead network file system never returns
_READ_ONLY = frozenset({"squashfs", "iso9660", "erofs", "cramfs", "udf"})


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Sizes in bytes and counts of inodes, as statvfs(3) has them."""

    mountpoint: str
    kind: str
    device: str
    source: str
    size: int
    free: int
    """For everyone, that is without what is kept for root."""
    inodes: int
    inodes_free: int


@dataclass(frozen=True, slots=True)
class DeletedFile:
    """A file without a name that takes `size` bytes (allocated), held open by `pid` as `fd`."""

    pid: int
    fd: int
    name: str
    size: int
    append_only: bool
    """Opened for writing at the end only: nobody reads through this descriptor."""


def file_systems(root: Path = Path("/")) -> list[FileSystem]:
    """Return each file system once; one that does not answer in two seconds is left out."""
    found: dict[str, FileSystem] = {}
    for mount in parse_mountinfo(text(root / "proc/self/mountinfo")):
        if mount.device in found or mount.kind in _READ_ONLY:
            continue
        values = _statvfs(mount.mountpoint)
        if values is None or values.f_blocks == 0:
            continue
        found[mount.device] = FileSystem(
            mount.mountpoint,
            mount.kind,
            mount.device,
            mount.source,
            values.f_blocks * values.f_frsize,
            values.f_bavail * values.f_frsize,
            values.f_files,
            values.f_ffree,
        )
    return list(found.values())


def _statvfs(path: str) -> os.statvfs_result | None:
    answer: list[os.statvfs_result] = []

    def ask() -> None:
        try:
            answer.append(os.statvfs(path))
        except OSError:
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answer[0] if answer else None


def deleted_files(proc: Path, pids: Iterable[int], device: int) -> Iterator[DeletedFile]:
    """Yield regular files on `device` (st_dev) that have no name any more but are open."""
    seen: set[int] = set()
    for pid in pids:
        base = f"{proc}/{pid}/fd"
        try:
            names = os.listdir(base)  # noqa: PTH208 - thousands of them
        except OSError:
            continue
        for name in names:
            try:
                about = os.stat(f"{base}/{name}")  # noqa: PTH116
                if (
                    about.st_nlink
                    or about.st_dev != device
                    or not stat.S_ISREG(about.st_mode)
                    or about.st_ino in seen
                ):
                    continue
                target = os.readlink(f"{base}/{name}").removesuffix(" (deleted)")  # noqa: PTH115
            except OSError:
                continue
            seen.add(about.st_ino)
            flags = _flags(text(f"{proc}/{pid}/fdinfo/{name}"))
            yield DeletedFile(
                pid,
                int(name),
                target,
                about.st_blocks * 512,
                flags & os.O_ACCMODE == os.O_WRONLY and bool(flags & os.O_APPEND),
            )


def _flags(info: str) -> int:
    for line in info.splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0


def busiest_directory(top: str, most: int = 200_000) -> tuple[str, int, bool]:
    """Return the directory below `top`, on the same file system, with the most entries.

    Also how many, and whether all were looked at (`most` entries in all).
    """
    device = os.lstat(top).st_dev
    best, count, seen = top, 0, 0
    pending = [top]
    while pending:
        directory = pending.pop(0)
        here = 0
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    here += 1
                    if entry.is_dir(follow_symlinks=False):
                        try:
                            if entry.stat(follow_symlinks=False).st_dev == device:
                                pending.append(entry.path)
                        except OSError:
                            continue
        except OSError:
            continue
        seen += here
        if here > count:
            best, count = directory, here
        if seen > most:
            return best, count, False
    return best, count, True
