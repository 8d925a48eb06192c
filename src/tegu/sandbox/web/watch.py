"""Directories that are watched: what changes in them, by inotify(7) through the box's own view."""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
from collections import deque
from dataclasses import dataclass

from tegu.linux import inotify
from tegu.sandbox.web.fault import Fault, as_fault
from tegu.sandbox.web.held import Held
from tegu.sandbox.web.tree import Info, Tree

__all__ = ["Change", "Watcher"]

_KINDS = (
    (inotify.CREATE | inotify.MOVED_TO, "create"),
    (inotify.MODIFY, "write"),
    (inotify.DELETE, "remove"),
    (inotify.MOVED_FROM, "rename"),
    (inotify.ATTRIB, "chmod"),
)
_MASK = (
    inotify.CREATE
    | inotify.MOVED_TO
    | inotify.MODIFY
    | inotify.DELETE
    | inotify.MOVED_FROM
    | inotify.ATTRIB
    | inotify.DELETE_SELF
)
_PASSED_OVER = ("not_found", "permission_denied", "invalid_argument")
"""A directory below that cannot be watched: it went away, or became something else."""
_MOST_DIRECTORIES = 4096
_MOST_CHANGES = 16384
_MOST_WATCHERS = 64


@dataclass(frozen=True)
class Change:
    """`name` is relative to the directory watched; `kind` is create, write, remove, rename (away)
    or chmod; `info` is what it is now, if that was asked for and it is there."""

    name: str
    kind: str
    info: Info | None = None


class Watcher:
    """A directory under watch, and all below it if `recursive`. Made by `start`."""

    def __init__(self, held: Held, path: str, *, recursive: bool, with_info: bool) -> None:
        self._held = held
        self._tree = Tree(held)
        self._path = path
        self._recursive = recursive
        self._with_info = with_info
        self._loop = asyncio.get_running_loop()
        self._notify: inotify.Inotify | None = None
        self._directories: dict[int, str] = {}
        self._queue: deque[Change] = deque()
        self._more = asyncio.Event()
        self._fault: Fault | None = None
        self._raw: asyncio.Queue[inotify.Notice] = asyncio.Queue()
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch. Raises Fault."""
        if (
            len({id(a) for a in self._held.attachments.values() if isinstance(a, Watcher)})
            >= _MOST_WATCHERS
        ):
            raise Fault("resource_exhausted", f"{_MOST_WATCHERS} directories are watched already")
        try:
            self._notify = inotify.Inotify()
            await self._add("", [])
        except OSError as e:
            self.close()
            raise as_fault(OSError(e.errno, f"cannot be watched: {e.strerror}", self._path)) from e
        except BaseException:
            self.close()
            raise
        self._loop.add_reader(self._notify.fd, self._readable)
        self._task = self._loop.create_task(self._digest())
        self._held.attachments[f"watch-{id(self)}"] = self

    async def _add(self, below: str, found: list[str]) -> None:
        """Watch a directory, and those in it; in `found` are the names of all that is below it."""
        left = [below]
        while left:
            one = left.pop()
            try:
                inside = await self._add_one(one)
            except Fault as e:
                if one == below or e.code not in _PASSED_OVER:
                    raise
                continue
            for name, is_directory in inside:
                child = posixpath.join(one, name)
                found.append(child)
                if is_directory:
                    left.append(child)

    async def _add_one(self, below: str) -> list[tuple[str, bool]]:
        """Watch one directory; returns the names in it, and whether they are directories."""
        assert self._notify is not None
        path = posixpath.join(self._path, below) if below else self._path
        fd = await self._tree.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._directories[self._notify.add(fd, _MASK)] = below
            if len(self._directories) > _MOST_DIRECTORIES:
                raise Fault(
                    "resource_exhausted", f"{self._path}: more than {_MOST_DIRECTORIES} directories"
                )
            if not self._recursive:
                return []
            return [(n, _is_directory(fd, n)) for n in sorted(os.listdir(fd))]  # noqa: PTH208
        finally:
            os.close(fd)

    def _readable(self) -> None:
        if self._notify is None or self._notify.fd < 0:
            return
        for notice in self._notify.read():
            self._raw.put_nowait(notice)
        if self._raw.qsize() > _MOST_CHANGES:
            self._loop.remove_reader(self._notify.fd)  # the kernel counts on, and says overflow

    async def _digest(self) -> None:
        try:
            while True:
                notice = await self._raw.get()
                self._busy = True
                await self._take(notice)
                self._busy = False
                if self._raw.empty() and self._notify is not None and self._notify.fd >= 0:
                    self._loop.add_reader(self._notify.fd, self._readable)
        except Fault as e:
            self._end(e)
        except OSError as e:
            self._end(as_fault(e))

    async def _take(self, notice: inotify.Notice) -> None:
        if notice.mask & inotify.OVERFLOW:
            raise Fault("resource_exhausted", f"{self._path}: too much changed at a time")
        if notice.mask & inotify.IGNORED:
            self._directories.pop(notice.watch, None)
            return
        below = self._directories.get(notice.watch)
        if below is None:
            return
        if notice.mask & inotify.DELETE_SELF:
            if not below:
                raise Fault("not_found", f"{self._path}: it was removed")
            return
        name = posixpath.join(below, notice.name.decode(errors="replace"))
        for mask, kind in _KINDS:
            if notice.mask & mask:
                await self._tell(name, kind)
        created = notice.mask & (inotify.CREATE | inotify.MOVED_TO)
        if self._recursive and created and notice.mask & inotify.ISDIR:
            found: list[str] = []
            try:
                await self._add(posixpath.join(below, os.fsdecode(notice.name)), found)
            except Fault as e:
                if e.code not in _PASSED_OVER:
                    raise
            for inside in found:  # made before we watched
                await self._tell(inside, "create")

    async def _tell(self, name: str, kind: str) -> None:
        info = None
        if self._with_info and kind not in ("remove", "rename"):
            try:
                info = await self._tree.stat(posixpath.join(self._path, name))
            except Fault as e:
                if e.code != "not_found":
                    raise
        self._queue.append(Change(name, kind, info))
        self._more.set()
        if len(self._queue) > _MOST_CHANGES:
            raise Fault("resource_exhausted", f"{self._path}: more changed than was fetched")

    def _end(self, fault: Fault) -> None:
        self._fault = fault
        self._more.set()

    def changes(self) -> list[Change]:
        """Return what has changed since the last call; raises Fault when it cannot watch on."""
        self._readable()
        found = list(self._queue)
        self._queue.clear()
        if not found and self._fault is not None:
            raise self._fault
        return found

    async def settled_changes(self) -> list[Change]:
        """As `changes`, after what the kernel has told already was taken in."""
        self._readable()
        while (self._busy or not self._raw.empty()) and self._fault is None:
            await asyncio.sleep(0.001)
        return self.changes()

    async def next(self) -> Change:
        """Wait for a change; raises Fault when it cannot watch on."""
        while not self._queue:
            if self._fault is not None:
                raise self._fault
            self._more.clear()
            await self._more.wait()
        return self._queue.popleft()

    def close(self) -> None:
        """Watch no more; who waits gets an error."""
        if self._notify is not None and self._notify.fd >= 0:
            self._loop.remove_reader(self._notify.fd)
            self._notify.close()
        if self._task is not None:
            self._task.cancel()
        self._held.attachments.pop(f"watch-{id(self)}", None)
        self._end(self._held.fault(Fault("not_found", f"{self._path}: is watched no more")))


def _is_directory(directory: int, name: str) -> bool:
    try:
        about = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode)
