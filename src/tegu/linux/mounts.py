"""Mounts inside a private mount namespace; they end with the namespace, however it ends."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tegu.linux import libc

__all__ = ["bind", "mount", "overlay", "pivot", "unmount"]


def mount(fstype: str, target: Path, *, flags: int = 0, data: str = "") -> None:
    """Mount a virtual file system of `fstype` (proc, tmpfs ...) at `target`, which must exist."""
    libc.mount(fstype, str(target), fstype, flags, data)


def bind(source: Path, target: Path, *, recursive: bool = False, read_only: bool = False) -> None:
    """Make `source` (file or directory) visible at `target`, which must exist and be its kind."""
    rec = libc.MS_REC if recursive else 0
    libc.mount(str(source), str(target), "", libc.MS_BIND | rec)
    if read_only:
        # In a user namespace a remount must keep the flags that the source is locked with.
        locked = 0
        at = os.statvfs(target).f_flag
        for flag in (os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC):
            locked |= at & flag
        libc.mount("", str(target), "", libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | locked)


def overlay(
    lower: Sequence[Path], target: Path, *, upper: Path | None = None, work: Path | None = None
) -> None:
    """Mount an overlay at `target`: `lower[0]` is the topmost read-only layer.

    With `upper` and `work` it can be written; both must be on one file system. Extended attributes
    are kept under `user.` (Documentation/filesystems/overlayfs.rst, "userxattr") so that the
    layers look the same to root and in a user namespace. fsync(2) in it does nothing where the
    kernel can do that ("volatile", Linux 5.10): a tree that is being made is of no use half-made.
    """
    layers = [str(p) for p in lower]
    if upper is None and len(layers) == 1:
        libc.mount(layers[0], str(target), "", libc.MS_BIND)
        return
    # The option string is limited to a page: layers are named relative to a common directory.
    base = os.path.commonpath([*layers, *(str(p) for p in (upper, work) if p)])

    def rel(p: str | Path) -> str:
        return (
            os.path.relpath(p, base).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
        )

    options = ["userxattr", "lowerdir=" + ":".join(rel(p) for p in layers)]
    further = [""]
    if upper is not None:
        options += [f"upperdir={rel(upper)}", f"workdir={rel(work or upper)}"]
        # The mark that a mount leaves would refuse the next one with this work directory.
        shutil.rmtree((work or upper) / "work/incompat", ignore_errors=True)
        further = [",volatile", ""]
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(base)
        for more in further:
            try:
                libc.mount("overlay", str(target), "overlay", 0, ",".join(options) + more)
                break
            except OSError as e:
                if e.errno != errno.EINVAL or not more:
                    raise
    finally:
        os.fchdir(before)
        os.close(before)


def unmount(target: Path) -> None:
    """Detach the mount at `target` and everything below it."""
    libc.umount2(str(target), libc.MNT_DETACH)


def pivot(root: Path) -> None:
    """Make `root` the calling process's `/` and let go of the old one (pivot_root(2)).

    Must run in a mount namespace of its own; `root` must be a mount point.
    """
    os.chdir(root)
    libc.pivot_root(".", ".")
    libc.umount2(".", libc.MNT_DETACH)
    os.chdir("/")
