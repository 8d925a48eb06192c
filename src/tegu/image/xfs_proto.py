"""A tree described to mkfs.xfs: the protofile of mkfs.xfs(8).

A protofile knows neither hard links nor names that begin with a colon, which starts a comment:
those are made afterwards with xfs_db(8). Times and the sticky bit, which it does not know either,
are written to the inodes (`tegu.image.xfs_inodes`). Extended attributes are those of regular files.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import BuildError, UnsupportedError

__all__ = ["Protofile", "Wanted", "write_protofile"]

_KINDS = {
    stat.S_IFREG: "-",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
    stat.S_IFIFO: "p",
}
_UNSAYABLE = re.compile(r"[\t\n\r\v\f]")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An inode as the tree has it: mtime in seconds, permission bits, names (None: not checked)."""

    mtime: int
    mode: int
    links: int | None


@dataclass
class Protofile:
    """A tree as a protofile, by paths relative to it, "" being the root.

    `times` and `modes` are of all paths. `links` are (existing path, further name of it), `renames`
    (name in the protofile, name in the tree).
    """

    path: Path
    times: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)
    renames: list[tuple[str, str]] = field(default_factory=list)

    def commands(self) -> str:
        """Return what xfs_db must do after mkfs.xfs, one command a line; empty for nothing."""
        lines = []
        for old, new in self.links:
            parent, _, name = new.rpartition("/")
            lines += [f"path /{parent}", f"link -p /{old} {name}"]
        for old, new in self.renames:
            parent, _, name = new.rpartition("/")
            lines += [f"path /{parent}", f"link -p /{old} {name}"]
            lines += [f"path /{parent}", f"unlink {old.rpartition('/')[2]}"]
        return "".join(f"{line}\n" for line in lines)

    def inodes(self, listing: str) -> dict[int, Wanted]:
        """Map inode numbers to what the tree says of them; the root's is 0.

        `listing` is what xfs_db's ncheck prints: a number and one of an inode's names a line, those
        of directories with `/.` behind. Raises BuildError when something of the tree is not there.
        """
        first = {new: old for old, new in self.links}
        names = Counter(first.values())
        missing = set(self.times) - set(first) - {""}
        found = {0: Wanted(self.times[""], self.modes[""], None)}
        for line in listing.splitlines():
            number, _, listed = line.strip().partition(" ")
            path = listed.removesuffix("/.")
            if not number.isdigit() or path not in self.times:
                continue
            missing.discard(first.get(path, path))
            links = None if path != listed else names[first.get(path, path)] + 1
            found[int(number)] = Wanted(self.times[path], self.modes[path], links)
        if missing:
            raise BuildError(f"mkfs.xfs left out /{min(missing)}")
        return found


def write_protofile(root: Path, directory: Path) -> Protofile:
    """Describe the tree `root` in `directory`, which also gets links for paths with spaces.

    Raises UnsupportedError for a name or a kind of file that cannot be expressed.
    """
    writer = _Writer(os.fspath(root), directory / "names", Protofile(directory / "protofile"))
    writer.aliases.mkdir()
    info = root.lstat()
    writer.note("", info)
    with writer.proto.path.open("w", errors="surrogateescape") as out:
        out.write(f"tegu\n0 0\nd{_mode(info)}\n")
        for line in writer.entries(""):
            out.write(line)
        out.write("$\n")
    return writer.proto


def _mode(info: os.stat_result) -> str:
    mode = info.st_mode
    special = ("u" if mode & stat.S_ISUID else "-") + ("g" if mode & stat.S_ISGID else "-")
    return f"{special}{mode & 0o777:03o} {info.st_uid} {info.st_gid}"


@dataclass
class _Writer:
    root: str
    aliases: Path
    proto: Protofile
    first: dict[tuple[int, int], str] = field(default_factory=dict)

    def note(self, path: str, info: os.stat_result) -> None:
        self.proto.times[path] = int(info.st_mtime)
        self.proto.modes[path] = stat.S_IMODE(info.st_mode)

    def entries(self, below: str) -> Iterator[str]:
        with os.scandir(f"{self.root}/{below}") as found:
            ordered = sorted(found, key=lambda e: os.fsencode(e.name))
        for entry in ordered:
            info = entry.stat(follow_symlinks=False)
            path = f"{below}/{entry.name}" if below else entry.name
            self.note(path, info)
            if not self.is_link(path, info):
                yield from self.entry(entry, path, below, info)

    def is_link(self, path: str, info: os.stat_result) -> bool:
        """Say whether a path is a further name of a file that was seen; such are linked later."""
        if stat.S_ISDIR(info.st_mode) or info.st_nlink == 1 or re.search(r"[\s:\"']", path):
            return False
        first = self.first.setdefault((info.st_dev, info.st_ino), path)
        if first == path:
            return False
        self.proto.links.append((first, path))
        return True

    def entry(
        self, entry: os.DirEntry[str], path: str, below: str, info: os.stat_result
    ) -> Iterator[str]:
        kind = _KINDS.get(stat.S_IFMT(info.st_mode))
        name = entry.name
        if kind is None:
            raise UnsupportedError(f"the socket /{path} in an XFS file system")
        if name.startswith(":") and kind != "d" and not re.search(r"[\s\"']", name):
            name = f"tegu-{len(self.proto.renames)}.name"
            self.proto.renames.append((f"{below}/{name}" if below else name, path))
        if _UNSAYABLE.search(name) or name.startswith(":") or name == "$":
            raise UnsupportedError(f"the name {path!r} in an XFS file system made by mkfs.xfs")
        # In names a slash stands for a space (slashes_are_spaces).
        head = f"{name.replace(' ', '/')} {kind}{_mode(info)}"
        match kind:
            case "d":
                yield f"{head}\n"
                yield from self.entries(path)
                yield "$\n"
            case "-":
                yield f"{head} {self.source(entry.path)}\n"
            case "l":
                target = os.readlink(entry.path)  # noqa: PTH115
                if re.search(r"\s|^:", target):
                    raise UnsupportedError(
                        f"the link /{path} to {target!r} in an XFS file system made by mkfs.xfs"
                    )
                yield f"{head} {target}\n"
            case "p":
                yield f"{head}\n"
            case _:
                yield f"{head} {os.major(info.st_rdev)} {os.minor(info.st_rdev)}\n"

    def source(self, path: str) -> str:
        """Return a path without spaces that leads to the file."""
        if not re.search(r"\s|/:", path):
            return path
        alias = self.aliases / str(len(self.proto.times))
        alias.symlink_to(path)
        return os.fspath(alias)
