"""A package more, or a newer one, on top of a tree that is there already.

The result must equal a build from scratch bit for bit. That holds when nothing that has been
configured could have noticed the new package, and the new package changes nothing that was there;
both are checked, the first in the scripts' text, the second in what was written. Whenever a check
does not hold, `Refused` says why and the caller builds from scratch.
"""

from __future__ import annotations

import filecmp
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tegu.image import dpkgdb
from tegu.image.alternatives import settled_paths
from tegu.image.canonical import canonicalise, clamp_times
from tegu.image.configure import configure, run_preinsts
from tegu.image.merge import PathMap, merge
from tegu.image.pycache import link_byte_code
from tegu.image.sandbox import sandbox
from tegu.image.trees import KIND, Tree, later_copies, save_record, unpacked_of
from tegu.image.unpack import Unpacked, open_unpacked
from tegu.image.update import exchange, why_not
from tegu.packages.lock import LockedPackage
from tegu.store import Store

__all__ = ["Delta", "Refused", "extend", "nearest"]

_MOST = 12  # packages; beyond, a build from scratch is as quick
_DEEPEST = 24  # layers of overlayfs


class Refused(Exception):  # noqa: N818 - not an error: the careful answer
    """The tree cannot be made from another one with certainty; the message says why."""


@dataclass(frozen=True)
class Delta:
    """How a package set differs from a tree's."""

    base: Tree
    added: tuple[str, ...]
    updated: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def distance(self) -> tuple[int, int]:
        """How far it is; of two equal ones, that with less to configure is nearer."""
        return len(self.added) + len(self.updated), len(self.added)

    def words(self) -> str:
        parts = [f"+{n}" for n in self.added] + [f"~{n}" for n in self.updated]
        return " ".join([*parts, *(f"-{n}" for n in self.removed)])


def nearest(
    trees: Iterable[Tree],
    packages: Sequence[LockedPackage],
    *,
    engine: str,
    architecture: str,
    timestamp: int,
) -> Delta | None:
    """Return the smallest difference to a tree made by the same code for the same lock date."""
    wanted = {p.name: p.sha256 for p in packages}
    best: Delta | None = None
    for tree in trees:
        if (tree.engine, tree.architecture, tree.timestamp) != (engine, architecture, timestamp):
            continue
        added = tuple(sorted(wanted.keys() - tree.packages.keys()))
        removed = tuple(sorted(tree.packages.keys() - wanted.keys()))
        updated = tuple(
            sorted(n for n in wanted.keys() & tree.packages.keys() if wanted[n] != tree.packages[n])
        )
        if removed or len(added) + len(updated) > _MOST or len(tree.layers) > _DEEPEST:
            continue
        delta = Delta(tree, added, updated, removed)
        if best is None or delta.distance < best.distance:
            best = delta
    return best


# What one package's text may say of another without meaning it.
_COMMON_WORDS = frozenset(
    [
        "bash",
        "sh",
        "dash",
        "perl",
        "python3",
        "sed",
        "awk",
        "grep",
        "test",
        "true",
        "false",
        "env",
        "init",
        "at",
        "file",
        "info",
        "time",
    ]
)


def _names(package: Unpacked) -> set[str]:
    """Return the words by which a script would notice a package: its name, programs, units."""
    names = {package.package.name}
    for entry in package.entries:
        if entry.kind == "d":
            continue
        directory, name = os.path.split(entry.path)
        if (
            directory.endswith(("/bin", "/sbin"))
            or directory in ("bin", "sbin")
            or "/systemd/" in directory
            or directory.startswith(("etc/init.d", "etc/default"))
        ):
            names.add(name)
    return names - _COMMON_WORDS


def _words(package: Unpacked) -> set[str]:
    words: set[str] = set()
    for member in ("preinst", "postinst", "config", "triggers"):
        text = "\n".join(
            line.split("#", 1)[0] if line.lstrip().startswith("#") else line
            for line in package.control.get(member, "").splitlines()
        )
        words |= set(re.findall(r"[A-Za-z0-9_.+@-]+", text))
    return words


def _check_unnoticed(new: Sequence[Unpacked], there: Sequence[Unpacked]) -> None:
    """Refuse if a script already run mentions something that a new package brings."""
    spoken = {p.package.name: _words(p) for p in there}
    for package in new:
        names = _names(package)
        # Dependencies of the new package were configured before it in any order of events.
        for other, words in spoken.items():
            if hit := names & words:
                word, name = sorted(hit)[0], package.package.name
                raise Refused(f"the scripts of {other} mention {word}, which {name} brings")


# Tables of many packages' entries; made canonical afterwards, so the order of arrival is no matter.
_SHARED = (
    "var/lib/dpkg/",
    "var/cache/debconf/",
    "var/lib/systemd/deb-systemd-helper-enabled/",
    "var/lib/systemd/deb-systemd-user-helper-enabled/",
    "var/lib/ucf/",
)
_SHARED_FILES = frozenset(
    {
        "etc/group",
        "etc/gshadow",
        "etc/ld.so.cache",
        "etc/passwd",
        "etc/shadow",
        "etc/shells",
        "etc/subgid",
        "etc/subuid",
        "var/lib/shells.state",
    }
)


def _check_apart(upper: Path, below: Sequence[Path], exchanged: set[str]) -> None:
    """Refuse if a path that the base tree has was written to, other than a shared table.

    `exchanged` are paths that were changed on purpose, and come out the same from scratch.
    """
    base = os.fspath(upper)
    for directory, directories, files in os.walk(base):
        links = [d for d in directories if os.path.islink(f"{directory}/{d}")]  # noqa: PTH114
        for name in [*files, *links]:
            full = f"{directory}/{name}"
            path = os.path.relpath(full, base)
            if path in _SHARED_FILES or path in exchanged or path.startswith(_SHARED):
                continue
            lower = next((p for layer in below if os.path.lexists(p := layer / path)), None)
            if lower is None or _whiteout(lower):
                continue
            if not _unchanged(Path(full), lower):
                raise Refused(f"configuring it changes /{path}, which was there before")
        for name in directories:
            full = f"{directory}/{name}"
            if os.path.islink(full):  # noqa: PTH114
                continue
            path = os.path.relpath(full, base)
            lower = next((p for layer in below if (p := layer / path).is_dir()), None)
            if lower is not None and not _same_directory(Path(full), lower):
                raise Refused(f"configuring it changes the mode or owner of /{path}")


def _whiteout(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _same_directory(a: Path, b: Path) -> bool:
    x, y = a.stat(), b.stat()
    return (x.st_mode, x.st_uid, x.st_gid) == (y.st_mode, y.st_uid, y.st_gid)


def _unchanged(a: Path, b: Path) -> bool:
    x, y = a.lstat(), b.lstat()
    if (x.st_mode, x.st_uid, x.st_gid) != (y.st_mode, y.st_uid, y.st_gid):
        return False
    if stat.S_ISLNK(x.st_mode):
        return a.readlink() == b.readlink()
    return stat.S_ISREG(x.st_mode) and filecmp.cmp(a, b, shallow=False)


def _check_new_paths(
    new: Sequence[Unpacked], there: Sequence[Unpacked], base: Sequence[Path]
) -> None:
    """Refuse if a new package ships a path that exists, or a directory with another mode."""
    links = {e.path: e.target for p in [*there, *new] for e in p.entries if e.kind == "l"}
    paths = PathMap(links)
    for package in new:
        for entry in package.entries:
            real = paths.directory(entry.path) if entry.kind == "d" else paths.real(entry.path)
            lower = next((p for layer in base if os.path.lexists(p := layer / real)), None)
            if lower is None:
                continue
            info = lower.lstat()
            if entry.kind != "d" or not stat.S_ISDIR(info.st_mode):
                raise Refused(f"/{real} of {package.package.name} exists already")
            same = (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (
                entry.mode,
                entry.uid,
                entry.gid,
            )
            if not same:
                raise Refused(f"{package.package.name} ships /{real} with another mode or owner")
        if any(
            line.startswith("interest") for line in package.control.get("triggers", "").splitlines()
        ):
            raise Refused(f"{package.package.name} wants to be told of other packages' files")
        if "dpkg-divert" in package.control.get("preinst", ""):
            raise Refused(f"{package.package.name} diverts files of other packages")


def extend(
    store: Store,
    key: str,
    delta: Delta,
    packages: Sequence[LockedPackage],
    scratch: Path,
) -> Tree:
    """Make the tree `key` from `delta.base`; raises Refused where that is not certain."""
    by_name = {p.name: p for p in packages}
    base = delta.base
    if delta.removed:
        raise Refused("a package was removed")
    new = unpacked_of(store, [by_name[n] for n in delta.added])
    there = unpacked_of(
        store,
        [by_name[n] for n in by_name if n in base.packages and n not in delta.updated],
    )
    pairs = _pairs(store, delta, by_name)
    below = base.directories(store)
    _check_unnoticed(new, [*there, *(old for old, _ in pairs)])
    _check_new_paths(new, there, below)
    _check_exchange(pairs, there, store, base)
    links = {e.path: e.target for p in there for e in p.entries if e.kind == "l"}
    with store.new_tree(KIND, key) as directory:
        lower, upper = directory / "lower", directory / "upper"
        lower.mkdir(mode=0o755)
        upper.mkdir(mode=0o755)
        merged = merge(new, lower, existing=links)
        merge([n for _, n in pairs], lower, existing=links, conffiles_new=False)
        changed = [*new, *(n for _, n in pairs)]
        later_copies(changed, lower, base.timestamp)
        _copy_directory_modes(lower, below)
        link_byte_code(
            store,
            changed,
            lower,
            scratch,
            timestamp=base.timestamp,
            below=below,
            interpreter_of=there,
        )
        with sandbox([lower, *below], scratch, upper=upper, timestamp=base.timestamp) as box:
            if pairs:
                exchange(box.root, pairs, PathMap(links), {})
            dpkgdb.add_unpacked(box.root, new, merged.lost, "install ok unpacked")
            run_preinsts(box, scratch, new)
            if new:
                configure(box, scratch)
            numbers = canonicalise(box.root, [upper])
        if any(numbers.get(name) != number for name, number in base.ids.items()):
            raise Refused("the new system users would change the numbers of others")
        links_map = PathMap(links)
        exchanged = {
            links_map.real(e.path) for pair in pairs for side in pair for e in side.entries
        }
        ran = [p.control.get(m, "") for p in there for m in ("preinst", "postinst", "config")]
        settled = {links_map.real(path) for path in settled_paths(upper, ran)}
        _check_apart(upper, below, exchanged | settled)
        clamp_times([lower, upper], base.timestamp)
        tree = Tree(
            key,
            base.engine,
            base.architecture,
            base.timestamp,
            (f"{KIND}/{key}/upper", f"{KIND}/{key}/lower", *base.layers),
            {p.name: p.sha256 for p in packages},
            numbers,
        )
        save_record(directory, tree)
    return tree


def _pairs(
    store: Store, delta: Delta, by_name: dict[str, LockedPackage]
) -> list[tuple[Unpacked, Unpacked]]:
    """Return (old, new) of every updated package; Refused if the old one is no longer unpacked."""
    found = []
    for name in delta.updated:
        new = by_name[name]
        old = open_unpacked(store, replace(new, sha256=delta.base.packages[name]))
        if old is None:
            raise Refused(f"the store no longer has the {name} of that tree")
        found.append((old, unpacked_of(store, [new])[0]))
    return found


def _check_exchange(
    pairs: Sequence[tuple[Unpacked, Unpacked]],
    there: Sequence[Unpacked],
    store: Store,
    base: Tree,
) -> None:
    """Refuse if a package that is to be exchanged is more than its files."""
    if not pairs:
        return
    links = {e.path: e.target for p in there for e in p.entries if e.kind == "l"}
    paths = PathMap(links)
    uppers = [store.root / layer for layer in base.layers if layer.endswith("/upper")]
    spoken = {p.package.name: _words(p) for p in there}
    for old, new in pairs:
        if reason := why_not(old, new):
            raise Refused(reason)
        if any(p.name.startswith("python3.") for p in (new.package,)) or "python" in (
            new.package.source
        ):
            raise Refused(f"{new.package.name} is part of Python, which compiles the others")
        conffiles = {c.lstrip("/") for c in new.conffiles}
        before = {e.path for e in old.entries}
        for entry in {e.path: e for e in (*old.entries, *new.entries)}.values():
            real = paths.real(entry.path)
            if entry.kind == "d":
                continue
            if entry.path in conffiles:
                found = next((p for u in uppers if (p := u / real).is_file()), None)
                if found is not None and not filecmp.cmp(
                    found, old.root / entry.path, shallow=False
                ):
                    raise Refused(f"/{real} of {new.package.name} was changed by a script")
                continue
            if any(os.path.lexists(layer / real) for layer in uppers):
                raise Refused(f"/{real} of {new.package.name} was changed by a script")
            program = posixpath.basename(entry.path)
            if entry.path not in before and any(program in words for words in spoken.values()):
                raise Refused(f"scripts mention {program}, which the new {new.package.name} brings")


def _copy_directory_modes(lower: Path, below: Sequence[Path]) -> None:
    """Parents that only the base tree describes keep its mode and owner in the new layer."""
    for directory, directories, _ in os.walk(lower):
        for name in directories:
            path = Path(directory) / name
            relative = path.relative_to(lower)
            there = next((p for layer in below if (p := layer / relative).is_dir()), None)
            if there is not None:
                info = there.stat()
                os.chown(path, info.st_uid, info.st_gid)
                path.chmod(stat.S_IMODE(info.st_mode))
