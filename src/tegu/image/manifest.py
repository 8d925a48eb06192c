"""What a finished tree holds, path by path: to compare trees, find rot, explain differences."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tegu.image.unpack import content_hash

__all__ = [
    "Difference",
    "Item",
    "compare",
    "manifest",
    "read_manifest",
    "tree_digest",
    "write_manifest",
]

_KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One path: relative name, kind, mode (octal), ids, size in bytes, mtime in whole seconds.

    `content` is the XXH3-128 of a file, the target of a link, the numbers of a device; `xattrs`
    are `name=hex` joined by commas, sorted; `link` is the first path of the same hard-linked file.
    """

    path: str
    kind: str
    mode: str
    uid: int
    gid: int
    size: int
    mtime: int
    content: str
    xattrs: str = ""
    link: str = ""


def manifest(root: Path, known: Mapping[str, str] | None = None) -> list[Item]:
    """Read a whole tree, sorted by path. Every byte is read: rot shows.

    `known` are contents (by path) that were computed moments ago and need not be read again.
    """
    return sorted(_walk(root, known or {}), key=lambda item: item.path)


def _walk(root: Path, known: Mapping[str, str]) -> Iterator[Item]:
    base = os.fspath(root)
    skip = len(base) + 1
    device = root.stat().st_dev
    first: dict[int, str] = {}
    stack = [base]
    yield _item(base, ".", root.lstat(), "", "")
    while stack:
        with os.scandir(stack.pop()) as entries:
            ordered = sorted(entries, key=lambda e: e.name)
        for entry in ordered:
            info = entry.stat(follow_symlinks=False)
            path = entry.path[skip:]
            link = content = ""
            if stat.S_ISDIR(info.st_mode):
                if info.st_dev == device:
                    stack.append(entry.path)
            elif stat.S_ISREG(info.st_mode):
                content = known.get(path) or content_hash(entry.path)
                if info.st_nlink > 1:
                    link = first.setdefault(info.st_ino, path)
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(entry.path)  # noqa: PTH115
            elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                content = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
            yield _item(entry.path, path, info, content, "" if link == path else link)


def _item(full: str, path: str, info: os.stat_result, content: str, link: str) -> Item:
    names = os.listxattr(full, follow_symlinks=False)
    xattrs = ",".join(
        f"{name}={os.getxattr(full, name, follow_symlinks=False).hex()}" for name in sorted(names)
    )
    regular = stat.S_ISREG(info.st_mode)
    return Item(
        path,
        _KINDS[stat.S_IFMT(info.st_mode)],
        f"{stat.S_IMODE(info.st_mode):o}",
        info.st_uid,
        info.st_gid,
        info.st_size if regular else 0,
        int(info.st_mtime),
        content,
        xattrs,
        link,
    )


def _line(item: Item) -> str:
    fields = (
        item.path, item.kind, item.mode, item.uid, item.gid, item.size, item.mtime,
        item.content, item.xattrs, item.link,
    )  # fmt: skip
    return "\0".join(str(field) for field in fields).replace("\\", "\\\\").replace("\n", "\\n")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text)


def tree_digest(items: Iterable[Item]) -> str:
    """Return the SHA-256 (hex) over all that a manifest says."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(_line(item).encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def write_manifest(path: Path, items: Iterable[Item]) -> None:
    """Write one record a line, fields separated by NUL."""
    with path.open("wb") as f:
        for item in items:
            f.write(_line(item).encode(errors="surrogateescape") + b"\n")


def read_manifest(path: Path) -> list[Item]:
    """Read what `write_manifest` wrote."""
    items = []
    for raw in path.read_bytes().split(b"\n"):
        if raw:
            text = raw.decode(errors="surrogateescape")
            f = (_unescape(text) if "\\" in text else text).split("\0")
            items.append(Item(f[0], f[1], f[2], int(f[3]), int(f[4]), int(f[5]), int(f[6]), *f[7:]))
    return items


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that differs: `what` is added, removed or a list of what changed in it."""

    path: str
    what: str


def compare(old: Iterable[Item], new: Iterable[Item]) -> list[Difference]:
    """Return what differs between two manifests, by path."""
    before: Mapping[str, Item] = {item.path: item for item in old}
    after: Mapping[str, Item] = {item.path: item for item in new}
    found = []
    for path in sorted(before.keys() | after.keys()):
        a, b = before.get(path), after.get(path)
        if a is None:
            found.append(Difference(path, "added"))
        elif b is None:
            found.append(Difference(path, "removed"))
        elif a != b:
            names = ("kind", "mode", "uid", "gid", "size", "mtime", "content", "xattrs", "link")
            changed = [
                f"{n} {getattr(a, n)} -> {getattr(b, n)}" if n not in ("content", "xattrs") else n
                for n in names
                if getattr(a, n) != getattr(b, n)
            ]
            found.append(Difference(path, ", ".join(changed)))
    return found
