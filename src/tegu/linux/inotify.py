"""inotify(7): what happens to files and directories, as the kernel tells it."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from tegu.linux import libc

__all__ = [
    "ATTRIB",
    "CREATE",
    "DELETE",
    "DELETE_SELF",
    "IGNORED",
    "ISDIR",
    "MODIFY",
    "MOVED_FROM",
    "MOVED_TO",
    "MOVE_SELF",
    "OVERFLOW",
    "Inotify",
    "Notice",
]

# linux/inotify.h
MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
OVERFLOW = 0x4000
IGNORED = 0x8000
ISDIR = 0x40000000
_HEAD = struct.Struct("iIII")


@dataclass(frozen=True)
class Notice:
    """What happened (`mask`) under the watch of this number, to the entry `name` of a directory."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """An inotify instance; its descriptor can be waited for."""

    def __init__(self) -> None:
        """Raises OSError: EMFILE when the user has too many."""
        self.fd = libc.call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK, what="inotify")

    def add(self, directory: int, mask: int) -> int:
        """Watch an open directory; returns the watch's number, which is the same for the same one.

        Raises OSError: ENOSPC when there are too many watches.
        """
        path = f"/proc/self/fd/{directory}".encode()
        return libc.call("inotify_add_watch", self.fd, path, ctypes.c_uint32(mask), what="inotify")

    def read(self) -> list[Notice]:
        """Return what there is to tell, perhaps nothing."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            found.append(Notice(watch, mask, data[at : at + length].rstrip(b"\0")))
            at += length
        return found

    def close(self) -> None:
        """Watch no more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
