"""Unpacked packages become one tree, by hard links: what `dpkg --unpack` of them all would leave.

The store's files are never written to afterwards: the tree is the read-only lower layer of an
overlay. Only files that would have to differ (owner) are shared too, since the store keeps them
with their owners.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import BuildError
from tegu.image.unpack import Entry, Unpacked

__all__ = ["Merged", "PathMap", "merge"]


class PathMap:
    """Names in a tree whose directories may be symbolic links (`/lib` -> `usr/lib`).

    `real("lib/x")` is `usr/lib/x`. Links are followed inside the tree only.
    """

    def __init__(self, links: Mapping[str, str]) -> None:
        self._links = dict(links)
        self._directories: dict[str, str] = {"": ""}

    def link(self, path: str, target: str) -> None:
        """Learn that `path` is a symbolic link to `target`."""
        self._links[path] = target
        self._directories.clear()
        self._directories[""] = ""

    def directory(self, path: str, *, depth: int = 0) -> str:
        """Return where directory `path` really is."""
        known = self._directories.get(path)
        if known is not None:
            return known
        parent, name = posixpath.split(path)
        real = posixpath.join(self.directory(parent, depth=depth), name)
        target = self._links.get(real)
        if target is not None:
            if depth > 40:
                raise BuildError(f"too many levels of symbolic links at /{path}")
            joined = posixpath.normpath(posixpath.join("/", posixpath.dirname(real), target))
            real = self.directory(joined.lstrip("/"), depth=depth + 1)
        self._directories[path] = real
        return real

    def real(self, path: str) -> str:
        """Return where `path` really is: its directory resolved, itself not."""
        parent, name = posixpath.split(path)
        return posixpath.join(self.directory(parent), name) if parent else path


@dataclass
class Merged:
    """What merging decided: which package owns each path, and who lost a path to a replacer."""

    owner: dict[str, str] = field(default_factory=dict)
    lost: dict[str, set[str]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    directories: dict[str, tuple[int, int, int]] = field(default_factory=dict)


def _replaces(package: Unpacked) -> set[str]:
    """Return the names in the Replaces field; versions are left to the solver."""
    names = set()
    for part in package.fields.get("Replaces", "").split(","):
        for alternative in part.split("|"):
            if words := alternative.split():
                names.add(words[0].split(":")[0])
    return names


def _order(packages: Iterable[Unpacked]) -> list[Unpacked]:
    # base-files first: it ships the links (/bin, /lib) that the others' paths go through.
    return sorted(packages, key=lambda p: (p.package.name != "base-files", p.package.name))


def merge(
    packages: Sequence[Unpacked],
    tree: Path,
    *,
    existing: Mapping[str, str] | None = None,
    conffiles_new: bool = True,
) -> Merged:
    """Fill `tree` (an empty directory) with hard links to the files of `packages`.

    With `conffiles_new` conffiles get the suffix `.dpkg-new`, as dpkg leaves them before it
    configures a package. A path shipped
    twice goes to the package that declares `Replaces` on the other; otherwise BuildError, as dpkg
    would refuse. `existing` gives the symbolic links of a tree below that this one goes on top of.
    """
    merged = Merged(links=dict(existing or {}))
    ordered = _order(packages)
    for package in ordered:
        for entry in package.entries:
            if entry.kind == "l":
                merged.links[entry.path] = entry.target
    # Directories that are links in the final tree; links to files do no harm in the map.
    paths = PathMap(merged.links)
    claims = _claims(ordered, paths, merged)
    made: set[str] = set()
    base = os.fspath(tree)
    for package in ordered:
        name = package.package.name
        source = os.fspath(package.root)
        conffiles = {paths.real(c.lstrip("/")) for c in package.conffiles if conffiles_new}
        for entry in package.entries:
            real = paths.real(entry.path)
            if entry.kind == "d":
                _directory(base, paths.directory(entry.path), entry, merged, made)
                continue
            if claims[real] != name:
                merged.lost.setdefault(name, set()).add("/" + entry.path)
                continue
            merged.owner[real] = name
            parent = posixpath.dirname(real)
            if parent not in made:
                os.makedirs(f"{base}/{parent}", exist_ok=True)  # noqa: PTH103
                made.add(parent)
            target = f"{base}/{real}.dpkg-new" if real in conffiles else f"{base}/{real}"
            os.link(f"{source}/{entry.path}", target, follow_symlinks=False)
    for path, (mode, uid, gid) in merged.directories.items():
        full = f"{base}/{path}"
        os.chmod(full, mode)  # noqa: PTH101
        if uid or gid:
            os.chown(full, uid, gid)
    return merged


def _directory(base: str, real: str, entry: Entry, merged: Merged, made: set[str]) -> None:
    if real not in made:
        os.makedirs(f"{base}/{real}", exist_ok=True)  # noqa: PTH103
        made.add(real)
    # The first in canonical order decides, as it would with dpkg.
    merged.directories.setdefault(real, (entry.mode, entry.uid, entry.gid))


def _claims(ordered: Sequence[Unpacked], paths: PathMap, merged: Merged) -> dict[str, str]:
    """Decide for every non-directory path which package ships it."""
    claims: dict[str, str] = {}
    replaces = {p.package.name: _replaces(p) for p in ordered}
    for package in ordered:
        name = package.package.name
        for entry in package.entries:
            if entry.kind == "d":
                continue
            real = paths.real(entry.path)
            other = claims.get(real)
            if other is None or other == name or other in replaces[name]:
                claims[real] = name
            elif name not in replaces[other]:
                raise BuildError(
                    f"/{real} is in the packages {other} and {name}, and neither replaces the other"
                )
    return claims
