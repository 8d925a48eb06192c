"""cpio archives as the kernel unpacks them: the "new ASCII" format, always the same bytes.

The format is that of Documentation/driver-api/early-userspace/buffer-format.rst: a header of
`070701` and thirteen fields of eight hexadecimal digits, then the name and the data, each padded to
four bytes, ended by an entry named `TRAILER!!!`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

__all__ = ["Archive"]


@dataclass
class Archive:
    """An archive being put together; entries come out sorted, owned by root, with one mtime."""

    timestamp: int
    entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory and what is above it."""
        for parent in _parents(path):
            self.entries.setdefault(parent, (stat.S_IFDIR | 0o755, b""))
        self.entries[path] = (stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file and the directories above it."""
        self._put(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link and the directories above it."""
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def _put(self, path: str, mode: int, data: bytes) -> None:
        for parent in _parents(path):
            self.entries.setdefault(parent, (stat.S_IFDIR | 0o755, b""))
        self.entries[path] = (mode, data)

    def pack(self) -> bytes:
        """Return the archive, padded to 512 bytes as cpio(1) does."""
        out = bytearray()
        for number, (path, (mode, data)) in enumerate(sorted(self.entries.items()), start=1):
            links = 2 if stat.S_ISDIR(mode) else 1
            _entry(out, path, data, ino=number, mode=mode, links=links, mtime=self.timestamp)
        _entry(out, "TRAILER!!!", b"", ino=0, mode=0, links=1, mtime=0)
        out += bytes(-len(out) % 512)
        return bytes(out)


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _entry(
    out: bytearray, path: str, data: bytes, *, ino: int, mode: int, links: int, mtime: int
) -> None:
    name = path.encode() + b"\0"
    fields = (ino, mode, 0, 0, links, mtime, len(data), 0, 0, 0, 0, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % f for f in fields)
    out += name
    out += bytes(-len(out) % 4)
    out += data
    out += bytes(-len(out) % 4)
