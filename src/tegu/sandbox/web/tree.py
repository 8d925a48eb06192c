"""Files of a sandbox. Paths are followed inside the box, by the box (`tegu.sandbox.client.Files`).

What is looked at from here (a directory's entries, their size and owner) is reached through
directories that the box opened, one name at a time and never through a link.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from tegu.errors import SandboxError
from tegu.sandbox.client import checked_file
from tegu.sandbox.web.fault import Fault, as_fault
from tegu.sandbox.web.held import Held, Names

__all__ = ["CHUNK", "METADATA", "Info", "Tree"]

CHUNK = 256 * 1024
METADATA = "user.e2b."
"""Extended attributes that hold what a client noted about a file (xattr(7))."""
_MOST_ENTRIES = 100_000
_MOST_REMOVED = 1_000_000
_PASSED_OVER = ("not_found", "permission_denied", "invalid_argument")
"""What a listing passes over below its first directory: it went away, or became something else."""
_IDS = 65536
_NAMES_FOR = 2.0


@dataclass(frozen=True)
class Info:
    """A file: `kind` is file, directory, link or other; `owner` and `group` as the box names them;
    `modified` in seconds since 1970."""

    name: str
    path: str
    kind: str
    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified: float
    target: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


class Tree:
    """The files of one sandbox."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def resolve(self, path: str, home: str = "/root") -> str:
        """Return an absolute path: a relative one, and "~", start at home. Raises Fault."""
        if not path or "\0" in path or len(path) > 4095:
            raise Fault("invalid_argument", f"path: {path[:60]!r} is no path")
        if path == "~" or path.startswith("~/"):
            path = home + path[1:]
        joined = posixpath.join(home, path)
        # What ".." leads to is the box's to say; only at the end is there no name to act on.
        tail = posixpath.basename(joined.rstrip("/"))
        return posixpath.normpath(joined) if tail in ("..", ".") else joined.rstrip("/") or "/"

    async def open(self, path: str, flags: int) -> int:
        """Open a regular file, or a directory; returns the descriptor. Raises Fault."""
        _, fds = await self._held.ask_fd("open", path=path, flags=flags)
        for extra in fds[1:]:
            os.close(extra)
        if not fds:
            raise Fault("internal", f"{path}: the box gave no descriptor")
        try:
            return checked_file(fds[0], path, directory=bool(flags & os.O_DIRECTORY))
        except SandboxError as e:
            raise Fault("invalid_argument", e.message) from e

    async def _directory(self, path: str) -> int:
        return await self.open(path, os.O_RDONLY | os.O_DIRECTORY)

    # Looking.

    async def stat(self, path: str) -> Info:
        """Return what a path is; a link is itself. Raises Fault."""
        await self._learn_names()
        parent, name = posixpath.split(path)
        fd = await self._directory(parent or "/")
        try:
            return self._info(fd, name or ".", path)
        except OSError as e:
            raise as_fault(OSError(e.errno, e.strerror, path)) from e
        finally:
            os.close(fd)

    async def entries(self, path: str, depth: int = 1) -> list[Info]:
        """Return a directory's entries, and theirs down to `depth`, each before what is in it."""
        await self._learn_names()
        found: list[Info] = []
        # Not recursive: a box may nest its directories deeper than Python its calls.
        open_ones = [iter(await self._entries_of(path))]
        while open_ones:
            info = next(open_ones[-1], None)
            if info is None:
                open_ones.pop()
                continue
            found.append(info)
            if len(found) > _MOST_ENTRIES:
                raise Fault("resource_exhausted", f"{path}: more than {_MOST_ENTRIES} entries")
            if len(open_ones) < depth and info.kind == "directory":
                try:
                    open_ones.append(iter(await self._entries_of(info.path)))
                except Fault as e:
                    if e.code not in _PASSED_OVER:
                        raise
        return found

    async def _entries_of(self, path: str) -> list[Info]:
        fd = await self._directory(path)
        found = []
        try:
            for i, name in enumerate(sorted(os.listdir(fd))):  # noqa: PTH208
                if i % 256 == 255:
                    await asyncio.sleep(0)  # others are to be served as well
                with suppress(FileNotFoundError):  # it went away meanwhile
                    found.append(self._info(fd, name, posixpath.join(path, name)))
        except OSError as e:
            raise as_fault(OSError(e.errno, e.strerror, path)) from e
        finally:
            os.close(fd)
        return found

    def _info(self, directory: int, name: str, path: str) -> Info:
        about = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind, target, metadata = "other", None, {}
        if stat.S_ISLNK(about.st_mode):
            kind, target = "link", os.readlink(name, dir_fd=directory)
        elif stat.S_ISDIR(about.st_mode):
            kind = "directory"
        elif stat.S_ISREG(about.st_mode):
            kind = "file"
            metadata = _metadata(directory, name)
        return Info(
            name=_text(posixpath.basename(path) or "/"),
            path=_text(path),
            kind=kind,
            size=about.st_size,
            mode=stat.S_IMODE(about.st_mode),
            permissions=stat.filemode(about.st_mode),
            owner=self._owner(about.st_uid),
            group=self._owner(about.st_gid, group=True),
            modified=about.st_mtime,
            target=None if target is None else _text(target),
            metadata=metadata,
        )

    async def _learn_names(self) -> None:
        """Read the box's own names of users and groups, and which of the host's ids is its 0."""
        now = asyncio.get_running_loop().time()
        if self._held.names is not None and now - self._held.names.read < _NAMES_FOR:
            return
        root = await self._directory("/")
        try:
            first = os.fstat(root).st_uid
        finally:
            os.close(root)
        users = await self._read_names("/etc/passwd")
        groups = await self._read_names("/etc/group")
        self._held.names = Names(now, first, users, groups)

    async def _read_names(self, path: str) -> dict[int, str]:
        names: dict[int, str] = {0: "root"}
        try:
            fd = await self.open(path, os.O_RDONLY)
        except Fault:
            return names
        with os.fdopen(fd, "rb") as f:
            for line in f.read(65536).decode(errors="replace").splitlines():
                fields = line.split(":")
                if len(fields) > 2 and fields[2].isascii() and fields[2].isdigit():
                    names.setdefault(int(fields[2][:9]), fields[0])
        return names

    def _owner(self, number: int, *, group: bool = False) -> str:
        names = self._held.names
        assert names is not None
        inside = number - names.first
        if not 0 <= inside < _IDS:
            return "nogroup" if group else "nobody"
        return (names.groups if group else names.users).get(inside, str(inside))

    # Changing.

    async def make_directories(self, path: str) -> bool:
        """Make a directory and those above it; returns whether it was not there. Raises Fault."""
        made = False
        for end in [i for i, c in enumerate(path) if c == "/" and i] + [len(path)]:
            try:
                await self._held.ask("mkdir", path=path[:end])
                made = True
            except Fault as e:
                # Such as a read-only directory that is there already.
                if e.code not in ("already_exists", "permission_denied") or end == len(path):
                    if end == len(path) and e.code == "already_exists":
                        os.close(await self._directory(path))  # not a file, though
                        return False
                    raise
        return made

    async def remove(self, path: str) -> None:
        """Remove a file, a link, or a directory with all that is in it. Raises Fault."""
        if path == "/":
            raise Fault("invalid_argument", "/: the root cannot be removed")
        left = [path]
        for _ in range(_MOST_REMOVED):
            try:
                await self._held.ask("remove", path=left[-1])
            except Fault as e:
                if e.code == "failed_precondition":  # ENOTEMPTY
                    left += await self._names_in(left[-1])
                    continue
                if e.code != "not_found" or len(left) == 1:
                    raise
            left.pop()
            if not left:
                return
        raise Fault("resource_exhausted", f"{path}: it fills faster than it is emptied")

    async def _names_in(self, path: str) -> list[str]:
        fd = await self._directory(path)
        try:
            return [posixpath.join(path, name) for name in os.listdir(fd)]  # noqa: PTH208
        finally:
            os.close(fd)

    async def move(self, source: str, target: str) -> None:
        """Rename; what was there is replaced, directories above it are made. Raises Fault."""
        parent = posixpath.dirname(target)
        if parent != "/":
            await self.make_directories(parent)
        await self._held.ask("rename", path=source, to=target)

    # Content.

    @staticmethod
    async def read(fd: int, *, start: int = 0, length: int) -> AsyncIterator[bytes]:
        """Yield what is in an open file; what it may have to wait for, a thread waits for."""
        at, end = start, start + length
        while at < end:
            data = await asyncio.to_thread(os.pread, fd, min(CHUNK, end - at), at)
            if not data:
                return
            at += len(data)
            yield data

    async def write(
        self, path: str, chunks: AsyncIterator[bytes], metadata: dict[str, str] | None = None
    ) -> Info:
        """Write a file, with the directories above it; replaced if it is there. Raises Fault."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            fd = await self.open(path, flags)
        except Fault as e:
            if e.code != "not_found":
                raise
            await self.make_directories(posixpath.dirname(path))
            fd = await self.open(path, flags)
        try:
            async for data in chunks:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            _note(fd, metadata or {})
        except OSError as e:
            raise as_fault(OSError(e.errno, e.strerror, path)) from e
        finally:
            os.close(fd)
        return await self.stat(path)


def _text(name: str) -> str:
    """Return a name as text that JSON can hold: what is no UTF-8 becomes a replacement."""
    return os.fsencode(name).decode(errors="replace")


def _metadata(directory: int, name: str) -> dict[str, str]:
    path = f"/proc/self/fd/{directory}/{name}"
    found = {}
    with suppress(OSError):  # a file system without, or it went away
        for key in os.listxattr(path, follow_symlinks=False):
            if key.startswith(METADATA):
                value = os.getxattr(path, key, follow_symlinks=False)
                found[key.removeprefix(METADATA)] = value.decode(errors="replace")
    return found


def _note(fd: int, metadata: dict[str, str]) -> None:
    for key in os.listxattr(fd) if metadata else []:
        if key.startswith(METADATA):
            os.removexattr(fd, key)
    for key, value in metadata.items():
        os.setxattr(fd, METADATA + key, value.encode())
