"""Applying a layer to a tree: the OCI image specification's "Image Layer Filesystem Changeset".

The tree is whatever a stranger's archive says. So every name is followed by the kernel with the
tree as its "/" (openat2(2), RESOLVE_IN_ROOT): no link and no ".." leads out, and names that try
are refused before. Devices are left out, as boxes have a /dev of their own.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections import Counter
from contextlib import suppress
from typing import IO, cast

from tegu.errors import SandboxError, TeguError, VerifyError
from tegu.linux.openat import open_in_root
from tegu.sandbox.images.packed import Budget, Packed

__all__ = ["apply_layer"]

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."
_ATTRIBUTE = "SCHILY.xattr."
_CHUNK = 1 << 20
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


def apply_layer(root: int, packed: Packed, budget: Budget) -> Counter[str]:
    """Apply a layer to the tree at the descriptor `root`; return what was left out, by kind.

    Raises VerifyError when it is damaged, SandboxError when it cannot or must not be applied. The
    tree is then half done: its owner drops it.
    """
    applied = _Applied(root, budget)
    try:
        # Its own exceptions, and those it lets through on nonsense in headers.
        with tarfile.open(
            fileobj=cast("IO[bytes]", packed), mode="r|", bufsize=_CHUNK, errors="surrogateescape"
        ) as archive:
            for member in archive:
                applied.take(archive, member)
    except TeguError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError) as e:
        packed.finish()  # a wrong digest is the better news
        raise VerifyError(f"damaged: {e}") from e
    packed.finish()
    applied.settle()
    return applied.left_out


class _Applied:
    def __init__(self, root: int, budget: Budget) -> None:
        self._root = root
        self._budget = budget
        self._fresh: set[str] = set()
        """What this layer brought, and the directories above it: whiteouts spare them."""
        self._times: list[tuple[str, int]] = []
        self.left_out: Counter[str] = Counter()

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Apply one entry."""
        self._budget.one_more()
        path = _inside(member.name, "a name")
        try:
            self._take(archive, member, path)
        except OSError as e:
            raise SandboxError(f"{_shown(path)}: {_why(e, member)}") from e

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if not path:
            if member.isdir():
                os.chmod(f"/proc/self/fd/{self._root}", stat.S_IMODE(member.mode))  # noqa: PTH101
            return
        directory, _, name = path.rpartition("/")
        if name.startswith(_WHITEOUT):
            self._whiteout(directory, name)
            return
        if member.isdev() and not member.isfifo():
            self.left_out["devices"] += 1
            return
        parent = self._parent(directory)
        try:
            self._make(archive, member, parent, name, path)
        finally:
            os.close(parent)
        while path and path not in self._fresh:
            self._fresh.add(path)
            path = path.rpartition("/")[0]

    def _parent(self, directory: str) -> int:
        """Open the directory that an entry belongs in; made where the layer does not name it."""
        try:
            return open_in_root(self._root, directory or "/", os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            above, _, name = directory.rpartition("/")
            parent = self._parent(above)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            except FileExistsError as e:
                raise OSError(errno.ELOOP, f"{_shown(directory)} is a link to nothing") from e
            finally:
                os.close(parent)
            return open_in_root(self._root, directory, os.O_PATH | os.O_DIRECTORY)

    def _make(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str, path: str
    ) -> None:
        there = _kind(parent, name)
        if there and not (there == stat.S_IFDIR and member.isdir()):
            _remove(parent, name)
            there = 0
        if member.islnk():
            self._link(member, parent, name)
            return
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.isdir():
            if not there:
                os.mkdir(name, 0o700, dir_fd=parent)
            self._times.append((path, _time(member)))
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif member.isreg():
            self._file(archive, member, parent, name)
            return
        else:
            raise SandboxError(f"{_shown(path)}: an entry of a kind that no layer has")
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, stat.S_IMODE(member.mode), dir_fd=parent)
            if member.isdir():
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                try:
                    self._attributes(member, fd)
                finally:
                    os.close(fd)
                return
        os.utime(name, ns=(_time(member),) * 2, dir_fd=parent, follow_symlinks=False)

    def _file(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            content = archive.extractfile(member)
            left = member.size
            while content is not None and left > 0:
                data = content.read(min(_CHUNK, left))
                if not data:
                    raise VerifyError("damaged: it ends too early")
                if member.sparse is not None:
                    self._budget.take(len(data))  # holes are not in the stream
                left -= len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            os.fchown(fd, member.uid, member.gid)
            os.fchmod(fd, stat.S_IMODE(member.mode))
            self._attributes(member, fd)
            os.utime(fd, ns=(_time(member),) * 2)
        finally:
            os.close(fd)

    def _attributes(self, member: tarfile.TarInfo, fd: int) -> None:
        for key, value in member.pax_headers.items():
            if not key.startswith(_ATTRIBUTE):
                continue
            name = key.removeprefix(_ATTRIBUTE)
            # An overlay would take its own attributes for orders.
            plain = name.startswith("user.") and not name.startswith("user.overlay.")
            if not plain and name != "security.capability":
                self.left_out["attributes"] += 1
                continue
            try:
                os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))
            except OSError as e:
                if e.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                self.left_out["attributes"] += 1

    def _link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        target = _inside(member.linkname, "a link's target")
        directory, _, last = target.rpartition("/")
        place = open_in_root(self._root, directory or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            os.link(last, name, src_dir_fd=place, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(place)

    def _whiteout(self, directory: str, name: str) -> None:
        """Remove what lower layers brought: one name, or all of an opaque directory."""
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise SandboxError(f"{_shown(directory)}/{name}: a whiteout of nothing")
        try:
            parent = open_in_root(self._root, directory or "/", os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if name == _OPAQUE:
                self._clear(parent, directory)
            elif not name.startswith(_AUFS):
                path = f"{directory}/{hidden}" if directory else hidden
                if path in self._fresh:
                    self._clear_below(parent, hidden, path)
                elif _kind(parent, hidden):
                    _remove(parent, hidden)
        finally:
            os.close(parent)

    def _clear(self, fd: int, directory: str) -> None:
        place = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(place):  # noqa: PTH208
                path = f"{directory}/{name}" if directory else name
                if path in self._fresh:
                    self._clear_below(place, name, path)
                else:
                    _remove(place, name)
        finally:
            os.close(place)

    def _clear_below(self, parent: int, name: str, path: str) -> None:
        if _kind(parent, name) == stat.S_IFDIR:
            below = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                self._clear(below, path)
            finally:
                os.close(below)

    def settle(self) -> None:
        """Give directories their times, now that nothing is put into them any more."""
        for path, when in reversed(self._times):
            with suppress(OSError):
                fd = open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.utime(fd, ns=(when, when))
                finally:
                    os.close(fd)


def _inside(name: str, what: str) -> str:
    """Return a path of an archive without its leading "/" and "./"; raises where it climbs."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise SandboxError(f"{what} that leads out of the image: {_shown(name)}")
    if "\0" in name:
        raise SandboxError(f"{what} with a NUL character: {_shown(name)}")
    return "/".join(parts)


def _kind(parent: int, name: str) -> int:
    """Return the kind of what has a name, as stat(2) says it, or 0 when nothing has."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


def _remove(parent: int, name: str) -> None:
    if _kind(parent, name) == stat.S_IFDIR:
        shutil.rmtree(name, dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)


def _time(member: tarfile.TarInfo) -> int:
    """Return nanoseconds, within what every file system can keep."""
    return int(min(max(member.mtime, 0), 2**33) * 10**9)


def _shown(name: str) -> str:
    return ascii(name[:200]).strip("'") or "/"


def _why(e: OSError, member: tarfile.TarInfo) -> str:
    if e.errno in (errno.EINVAL, errno.EOVERFLOW) and max(member.uid, member.gid) > 65535:
        return f"owned by {member.uid}:{member.gid}, and a box has ids up to 65535"
    if e.errno == errno.ENOTDIR:
        return "what should hold it is no directory"
    if member.islnk() and e.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"a link to {_shown(member.linkname)}, which is not there"
    return e.strerror or str(e)
