"""Configured trees: packages unpacked, merged, configured; kept in the store as overlay layers.

A tree is a list of directories (topmost first) to be stacked by overlayfs, and a record of what
is in it. A small difference in packages is made on top of the nearest tree there is, where
`tegu.image.incremental` can tell that the result is the same as from scratch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tegu.errors import BuildError
from tegu.image import dpkgdb
from tegu.image.canonical import canonicalise, clamp_times
from tegu.image.configure import configure, run_preinsts
from tegu.image.merge import merge
from tegu.image.pycache import link_byte_code
from tegu.image.sandbox import sandbox
from tegu.image.unpack import Unpacked, open_unpacked
from tegu.packages.lock import LockedPackage
from tegu.store import Store

__all__ = ["KIND", "MOUNT_POINTS", "Tree", "all_trees", "from_scratch", "open_tree", "save_record"]

KIND = "trees-1"
MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp")


@dataclass(frozen=True)
class Tree:
    """`layers` are relative to the store's root; `packages` maps names to SHA-256 of .debs.

    `ids` are the numbers of dynamic users and groups.
    """

    key: str
    engine: str
    architecture: str
    timestamp: int
    layers: tuple[str, ...]
    packages: dict[str, str]
    ids: dict[str, int]

    def directories(self, store: Store) -> list[Path]:
        return [store.root / layer for layer in self.layers]


def open_tree(store: Store, key: str) -> Tree | None:
    """Return the tree `key`, if it and all layers it stands on are in the store."""
    directory = store.tree(KIND, key)
    if directory is None:
        return None
    try:
        raw = json.loads((directory / "tree.json").read_text())
        tree = Tree(**{**raw, "layers": tuple(raw["layers"])})
    except (ValueError, TypeError, OSError):
        return None
    if not all((store.root / layer).is_dir() for layer in tree.layers):
        return None
    for layer in tree.layers:
        parts = Path(layer).parts
        store.tree(parts[0], parts[1])  # touched: needed by this tree
    return tree


def all_trees(store: Store) -> list[Tree]:
    """Return every whole tree in the store."""
    directory = store.root / KIND
    if not directory.is_dir():
        return []
    found = (open_tree(store, path.name) for path in sorted(directory.iterdir()))
    return [tree for tree in found if tree is not None]


def save_record(directory: Path, tree: Tree) -> None:
    (directory / "tree.json").write_text(json.dumps(asdict(tree), sort_keys=True))


def unpacked_of(store: Store, packages: Sequence[LockedPackage]) -> list[Unpacked]:
    """Return the unpacked packages; BuildError if one is missing."""
    found = []
    for package in packages:
        unpacked = open_unpacked(store, package)
        if unpacked is None:
            raise BuildError(f"{package.name} is not unpacked in the store")
        found.append(unpacked)
    return found


def later_copies(packages: Sequence[Unpacked], layer: Path, timestamp: int) -> None:
    """Give files newer than the lock's date a copy of their own, for `clamp_times` to set back.

    The merged layer shares files with the store; those must not be touched.
    """
    import shutil

    for package in packages:
        for entry in package.entries:
            if entry.kind != "f":
                continue
            source = package.root / entry.path
            if source.stat().st_mtime <= timestamp:
                continue
            for name in (entry.path, f"{entry.path}.dpkg-new"):
                path = layer / name
                if path.is_file() and path.samefile(source):
                    copy = path.with_name(path.name + ".tegu-copy")
                    shutil.copy2(path, copy)
                    os.chown(copy, entry.uid, entry.gid)
                    copy.chmod(entry.mode)
                    copy.rename(path)


def from_scratch(
    store: Store,
    key: str,
    packages: Sequence[LockedPackage],
    scratch: Path,
    *,
    engine: str,
    architecture: str,
    timestamp: int,
) -> Tree:
    """Merge and configure `packages` (all unpacked in the store) into a new tree `key`."""
    unpacked = unpacked_of(store, packages)
    with store.new_tree(KIND, key) as directory:
        lower, upper = directory / "lower", directory / "upper"
        lower.mkdir(mode=0o755)
        upper.mkdir(mode=0o755)
        merged = merge(unpacked, lower)
        later_copies(unpacked, lower, timestamp)
        for name in MOUNT_POINTS:
            (lower / name).mkdir(exist_ok=True)
        link_byte_code(store, unpacked, lower, scratch, timestamp=timestamp)
        with sandbox([lower], scratch, upper=upper, timestamp=timestamp) as box:
            dpkgdb.add_unpacked(box.root, unpacked, merged.lost, "install ok unpacked")
            run_preinsts(box, scratch, unpacked)
            configure(box, scratch)
            numbers = canonicalise(box.root, [upper])
        clamp_times([lower, upper], timestamp)
        tree = Tree(
            key,
            engine,
            architecture,
            timestamp,
            (f"{KIND}/{key}/upper", f"{KIND}/{key}/lower"),
            {p.name: p.sha256 for p in packages},
            numbers,
        )
        save_record(directory, tree)
    return tree
