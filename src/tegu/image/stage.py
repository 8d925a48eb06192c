"""A copy of a tree whose directories list their entries in sorted order.

Some tools write files in the order in which the kernel lists them, which on most file systems
depends on a random seed. On tmpfs it follows from the order of creation. The copy lives in memory,
so it is made only for tools that leave no other way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tegu.errors import BuildError, TeguError, UnsupportedError
from tegu.linux import mount, unmount

__all__ = ["staged"]


@contextmanager
def staged(root: Path, place: Path) -> Iterator[Path]:
    """Copy the tree `root` to a tmpfs on the new directory `place` while the block runs.

    Raises UnsupportedError where no tmpfs can be mounted or it lists entries in another order.
    """
    place.mkdir()
    try:
        mount("tmpfs", place, data="mode=0755,size=90%")
    except (TeguError, OSError) as e:
        place.rmdir()
        raise UnsupportedError(
            f"a tmpfs cannot be mounted here: {e}", hint="this file system is made on one"
        ) from e
    try:
        tree = place / "tree"
        tree.mkdir()
        _Copy(root, tree, newest_first=_newest_first(place)).directory("")
        yield tree
    finally:
        # The tools' own view of it may outlive ours: give the memory back now.
        for path, directories, names in os.walk(place, topdown=False):
            for name in names:
                os.unlink(f"{path}/{name}")  # noqa: PTH108
            for name in directories:
                full = f"{path}/{name}"
                if os.path.islink(full):  # noqa: PTH114
                    os.unlink(full)  # noqa: PTH108
                else:
                    os.rmdir(full)  # noqa: PTH106
        unmount(place)
        place.rmdir()


def _newest_first(place: Path) -> bool:
    """Find out in which order this kernel's tmpfs lists a directory; it changed in Linux 6.6."""
    probe = place / "probe"
    probe.mkdir()
    names = [f"{c}{i}" for i, c in enumerate("qahzbm")]
    for name in names:
        (probe / name).touch()
    listed = [path.name for path in probe.iterdir()]
    for name in names:
        (probe / name).unlink()
    probe.rmdir()
    if listed == names:
        return False
    if listed == names[::-1]:
        return True
    raise UnsupportedError("this kernel's tmpfs lists files in an order of its own")


class _Copy:
    def __init__(self, root: Path, target: Path, *, newest_first: bool) -> None:
        self.root, self.target = os.fspath(root), os.fspath(target)
        self.newest_first = newest_first
        self.seen: dict[tuple[int, int], str] = {}

    def directory(self, below: str) -> None:
        source, target = self.root + below, self.target + below
        with os.scandir(source) as found:
            ordered = sorted(found, key=lambda e: os.fsencode(e.name), reverse=self.newest_first)
        for entry in ordered:
            info = entry.stat(follow_symlinks=False)
            path = f"{below}/{entry.name}"
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(self.target + path)  # noqa: PTH102
                self.directory(path)
            else:
                self.file(path, info)
        _metadata(source, target, os.lstat(source))

    def file(self, path: str, info: os.stat_result) -> None:
        source, target = self.root + path, self.target + path
        if info.st_nlink > 1:
            first = self.seen.setdefault((info.st_dev, info.st_ino), target)
            if first != target:
                os.link(first, target, follow_symlinks=False)
                return
        if stat.S_ISREG(info.st_mode):
            with open(source, "rb") as a, open(target, "wb") as b:  # noqa: PTH123
                left = info.st_size
                while left:
                    done = os.sendfile(b.fileno(), a.fileno(), None, left)
                    if done == 0:
                        raise BuildError(f"{source} became shorter while it was copied")
                    left -= done
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211
        else:
            os.mknod(target, info.st_mode, info.st_rdev)
        _metadata(source, target, info)


def _metadata(source: str, target: str, info: os.stat_result) -> None:
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(target, stat.S_IMODE(info.st_mode))  # noqa: PTH101
    for name in os.listxattr(source, follow_symlinks=False):
        value = os.getxattr(source, name, follow_symlinks=False)
        os.setxattr(target, name, value, follow_symlinks=False)
    times = (info.st_mtime_ns, info.st_mtime_ns)
    os.utime(target, ns=times, follow_symlinks=False)
