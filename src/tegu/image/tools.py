"""Programs that images are made with, from the lock: the bits do not depend on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tegu.image.merge import merge
from tegu.image.sandbox import Sandbox, sandbox
from tegu.image.unpack import Unpacked, open_unpacked, unpack_missing
from tegu.linux import bind
from tegu.packages.lock import LockedPackage
from tegu.process import Completed
from tegu.store import Store

__all__ = ["LockedTools", "locked_tools"]

KIND = "tools-1"
_MOUNT_POINTS = ("run", "tmp", "proc", "dev", "sys", "root")


class LockedTools:
    """Runs programs of the tools tree, each in a mount namespace of its own.

    Paths given as `binds` appear inside under the same absolute path; nothing else of this machine
    does.
    """

    def __init__(self, box: Sandbox) -> None:
        self._box = box

    def path(self, name: str) -> Path:
        """Return where a file of the tools tree is for this process."""
        return self._box.root / name

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        binds: Mapping[Path, str] | Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        timeout: float = 900,
        check: bool = True,
        stdin: str | bytes | None = None,
    ) -> Completed:
        """Run a program; raises CommandError as `tegu.process.run` does."""
        pairs = dict(binds) if isinstance(binds, Mapping) else {p: os.fspath(p) for p in binds}
        for outside, inside in pairs.items():
            target = self._box.root / inside.lstrip("/")
            # The tree's /run and /tmp are tmpfs and its root is an overlay upper: mount points
            # made here are not part of the tools.
            if outside.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            if not target.is_mount() and not _same(outside, target):
                bind(outside, target, recursive=outside.is_dir())
        return self._box.run(argv, env=env, timeout=timeout, check=check, stdin=stdin)


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except FileNotFoundError:
        return False


def tools_key(packages: Sequence[LockedPackage]) -> str:
    """Return the key of a tools tree: what it is made of."""
    return hashlib.sha256("\n".join(sorted(p.sha256 for p in packages)).encode()).hexdigest()


@contextmanager
def locked_tools(
    store: Store, packages: Sequence[LockedPackage], scratch: Path, *, timestamp: int
) -> Iterator[LockedTools]:
    """Mount the tools tree, made first if the store lacks it. Nothing in it is configured."""
    key = tools_key(packages)
    tree = store.tree(KIND, key)
    if tree is None:
        unpack_missing(store, packages, tools=packages)
        unpacked: list[Unpacked] = []
        for package in packages:
            found = open_unpacked(store, package)
            assert found is not None, "unpack_missing put it there"
            unpacked.append(found)
        with store.new_tree(KIND, key) as made:
            merge(unpacked, made, conffiles_new=False)
            for name in _MOUNT_POINTS:
                (made / name).mkdir(exist_ok=True)
        tree = store.root / KIND / key
    area = scratch / "tools"
    upper = area / "upper"
    upper.mkdir(parents=True)
    with sandbox([tree], area, upper=upper, timestamp=timestamp) as box:
        yield LockedTools(box)
