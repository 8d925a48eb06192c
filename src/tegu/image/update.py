"""Exchange a package for another version of itself on a tree that is configured already.

Certain only for a package whose maintainer scripts do nothing of their own: then configuring it
has left no trace but what its files and its record say, and both are exchanged here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tegu.image.dpkgdb import ADMIN, add_unpacked, info_name, md5_of
from tegu.image.merge import PathMap
from tegu.image.unpack import Unpacked

__all__ = ["exchange", "why_not"]

_SCRIPTS = ("preinst", "postinst", "config", "templates", "triggers")
_SECTION = re.compile(
    r"^# Automatically added by (\S+?)(?:/\S+)?$.*?^# End automatically added section$",
    re.MULTILINE | re.DOTALL,
)
# Generated script parts whose whole effect is redone for every tree (byte code, linker cache), or
# which do nothing on a first installation.
_HARMLESS = frozenset(["dh_makeshlibs", "dh_python3", "dh_installdeb", "dh_installman"])
_NOTHING = re.compile(r"^(#.*|set -e|exit 0|:|)$")


def _own_text(script: str) -> str | None:
    """Return what a script does itself; None if a generated part is not harmless."""
    for section in _SECTION.finditer(script):
        if section[1] not in _HARMLESS:
            return None
    rest = _SECTION.sub("", script)
    return "\n".join(line for line in rest.splitlines() if not _NOTHING.match(line.strip()))


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def why_not(old: Unpacked, new: Unpacked) -> str | None:
    """Return why `old` can not be exchanged for `new` with certainty, or None if it can."""
    name = new.package.name
    if info_name(old) != info_name(new):
        return f"{name} changed its architecture"
    for member in _SCRIPTS:
        before, after = old.control.get(member, ""), new.control.get(member, "")
        if member in ("preinst", "postinst"):
            if _own_text(before) != "" or _own_text(after) != "":
                return f"{name} has a {member} of its own"
        elif _without_comments(before) != _without_comments(after):
            return f"{name} changed its {member}"
        elif member in ("config", "templates") and after:
            return f"{name} asks questions"
    if old.conffiles != new.conffiles:
        return f"{name} changed its list of conffiles"
    kinds = {e.path: e.kind for e in old.entries}
    for entry in new.entries:
        if (entry.kind == "d") != (kinds.get(entry.path, entry.kind) == "d"):
            return f"/{entry.path} of {name} turned from or into a directory"
    return None


def exchange(
    root: Path,
    pairs: Sequence[tuple[Unpacked, Unpacked]],
    paths: PathMap,
    lost: dict[str, set[str]],
) -> None:
    """Take the old versions' leftovers and records out of the mounted tree, put in new records.

    The new versions' files are in a layer of the mount already.
    """
    for old, new in pairs:
        kept = {paths.real(e.path) for e in new.entries}
        gone = [paths.real(e.path) for e in old.entries if paths.real(e.path) not in kept]
        for name in sorted(gone, reverse=True):  # children before their directories
            _remove(root, name)
        for name in gone:
            if name.endswith(".py"):
                _remove_byte_code(root / name)
        for path in sorted((root / ADMIN / "info").glob(f"{info_name(old)}.*")):
            path.unlink()
    renewed = [new for _, new in pairs]
    add_unpacked(root, renewed, lost, "install ok installed")
    _settle_conffiles(root, renewed)


def _remove(root: Path, path: str) -> None:
    full = root / path
    if full.is_dir() and not full.is_symlink():
        if not os.listdir(full):  # noqa: PTH208
            full.rmdir()
    else:
        full.unlink(missing_ok=True)


def _remove_byte_code(source: Path) -> None:
    cache = source.parent / "__pycache__"
    for path in cache.glob(f"{source.stem}.cpython-*.pyc"):
        path.unlink()
    if cache.is_dir() and not os.listdir(cache):  # noqa: PTH208
        cache.rmdir()


def _settle_conffiles(root: Path, packages: Sequence[Unpacked]) -> None:
    """Record conffiles by their MD5 instead of as new ones, as a configured package has them."""
    status = root / ADMIN / "status"
    text = status.read_text()
    for package in packages:
        for conffile in package.conffiles:
            digest = md5_of(package.root / conffile.lstrip("/"))
            text = text.replace(f"\n {conffile} newconffile", f"\n {conffile} {digest}")
    status.write_text(text)
