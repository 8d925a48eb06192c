"""A tree made of its table: directories, files, links, devices, with all their metadata.

The caller says what each file's content is. Everything is made below a new directory that only its
owner can enter, by paths that `table` has checked: no step goes through a symbolic link.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable

from tegu.errors import UpgradeError, VerifyError
from tegu.host.delta.table import Record, Table

__all__ = ["build"]

_NODES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK}
_HOLE = 1 << 16


def build(table: Table, place: bytes, content: Callable[[Record], Iterable[bytes]]) -> None:
    """Make the tree of `table` in `place`, an empty directory.

    `content` yields the bytes of a file, in parts; what differs from the record's size or SHA-256
    is a VerifyError. Raises UpgradeError for what this file system or user cannot make.
    """
    directories = []
    for record in table.records:
        full = place if record.path == b"." else place + b"/" + record.path
        try:
            if record.kind == "d":
                if record.path != b".":
                    os.mkdir(full, 0o700)  # noqa: PTH102 - bytes
                directories.append((full, record))
                continue
            if record.kind == "h":
                os.link(place + b"/" + record.content, full, follow_symlinks=False)
                continue
            if record.kind == "f":
                _file(full, record, content(record))
            elif record.kind == "l":
                os.symlink(record.content, full)  # noqa: PTH211 - bytes
            else:
                major, _, minor = record.content.partition(b":")
                device = os.makedev(int(major), int(minor)) if minor else 0
                os.mknod(full, _NODES[record.kind] | 0o600, device)
            _metadata(full, record)
        except (OSError, OverflowError) as e:
            raise UpgradeError(f"{os.fsdecode(full)!r} cannot be made: {e}") from e
    for full, record in reversed(directories):
        try:
            _metadata(full, record)
        except OSError as e:
            raise UpgradeError(f"{os.fsdecode(full)!r} cannot be made: {e}") from e


def _file(full: bytes, record: Record, parts: Iterable[bytes]) -> None:
    digest = hashlib.sha256()
    size = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(full, flags, 0o600)
    try:
        for part in parts:
            size += len(part)
            if size > record.size:
                break
            digest.update(part)
            if len(part) >= _HOLE and part.count(0) == len(part):
                os.lseek(handle, len(part), os.SEEK_CUR)
            else:
                _write(handle, part)
        os.ftruncate(handle, size)
    finally:
        os.close(handle)
    if size != record.size or digest.hexdigest().encode() != record.content:
        raise VerifyError(f"{record.path!r} did not come out as the delta's table says")


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _metadata(full: bytes, record: Record) -> None:
    os.chown(full, record.uid, record.gid, follow_symlinks=False)
    if record.kind != "l":
        os.chmod(full, record.mode)  # noqa: PTH101 - after chown, which takes setuid away
    for name, value in record.xattrs:
        os.setxattr(full, name, value, follow_symlinks=False)
    times = (record.mtime_ns, record.mtime_ns)
    os.utime(full, ns=times, follow_symlinks=False)
