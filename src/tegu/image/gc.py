"""Free what no recent build needs. Everything in the store can be made again."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tegu.image.assemble import KIND as IMAGES
from tegu.image.configured import KIND as SYSTEMS
from tegu.image.trees import KIND as TREES
from tegu.store import Store

__all__ = ["Freed", "collect", "usage"]

_KEPT = frozenset(
    ["blobs", "locks", "partial", "tmp", "history", "functions", "function-names", "VERSION"]
)
# ccache bounds itself; its directories do not change when what is in them is used.
_BOUNDED = frozenset(["ccache-1"])


@dataclass(frozen=True)
class Freed:
    """What was removed, by kind: count and bytes (of files that nothing else links to)."""

    kinds: dict[str, tuple[int, int]]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.kinds.values())


def _size(path: Path) -> int:
    if path.is_symlink() or path.is_file():
        return path.lstat().st_blocks * 512
    total = 0
    seen: set[int] = set()
    for directory, _, files in os.walk(path):
        for name in files:
            info = os.lstat(f"{directory}/{name}")
            if info.st_ino not in seen:
                seen.add(info.st_ino)
                total += info.st_blocks * 512
    return total


def usage(store: Store) -> dict[str, tuple[int, int]]:
    """Return entries and bytes on disk by kind; files shared between kinds count in the first."""
    found = {}
    seen: set[int] = set()
    for kind in sorted(p for p in store.root.iterdir() if p.is_dir() and p.name != "locks"):
        count = len(list(kind.rglob("*"))) if kind.name == "blobs" else len(list(kind.iterdir()))
        size = 0
        for directory, _, files in os.walk(kind):
            for name in files:
                info = os.lstat(f"{directory}/{name}")
                if info.st_ino not in seen:
                    seen.add(info.st_ino)
                    size += info.st_blocks * 512
        found[kind.name] = (count, size)
    return found


def collect(store: Store, *, days: float = 14, everything: bool = False) -> Freed:
    """Remove what has not been used for `days`; with `everything`, all but images.

    A tree in use by a newer one is touched with it, so age alone decides. Waits for running builds.
    """
    horizon = time.time() - days * 86400
    freed: dict[str, tuple[int, int]] = {}

    def remove(kind: str, path: Path) -> None:
        count, size = freed.get(kind, (0, 0))
        freed[kind] = (count + 1, size + _size(path))
        if path.is_dir() and not path.is_symlink():
            store.drop_tree(kind, path.name)
        else:
            path.unlink(missing_ok=True)

    with store.exclusive():
        store.sweep()
        for path in sorted((store.root / "partial").iterdir()):
            if everything or path.stat().st_mtime < horizon:
                remove("partial", path)
        # Images first, then what stands on what: a layer goes after those above it.
        for kind in (IMAGES, SYSTEMS, TREES, *sorted(p.name for p in store.root.iterdir())):
            directory = store.root / kind
            if kind in _KEPT or kind in freed or not directory.is_dir():
                continue
            if kind in _BOUNDED and not everything:
                continue
            for path in sorted(directory.iterdir()):
                old = path.lstat().st_mtime < horizon
                if old or (everything and kind != IMAGES):
                    remove(kind, path)
        for path in sorted((store.root / "blobs").glob("*/*")):
            if everything or (path.stat().st_atime < horizon and path.stat().st_mtime < horizon):
                remove("blobs", path)
    return Freed(freed)
