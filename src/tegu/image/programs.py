"""Running the programs that images are made with: from a lock's tools tree, or this machine's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tegu.process import Completed, require, run

__all__ = ["HostTools", "Tools", "tool_environment"]


class Tools(Protocol):
    """Where programs and their files come from.

    `run` runs a program to its end; paths in `binds` are what it may see of this machine, under the
    same absolute path (or the one that a mapping gives). `path` returns where a file of the tools,
    named relative to their root, is for this process. Both raise as `tegu.process.run` does.
    """

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        binds: Mapping[Path, str] | Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        timeout: float = 900,
        check: bool = True,
        stdin: str | bytes | None = None,
    ) -> Completed: ...

    def path(self, name: str) -> Path: ...


# Debian packages of the programs, for the hint when one is missing.
_PACKAGES = {
    "grub-mkimage": "grub-common",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.erofs": "erofs-utils",
    "mkfs.fat": "dosfstools",
    "mkfs.xfs": "xfsprogs",
    "qemu-img": "qemu-utils",
    "xfs_db": "xfsprogs",
}


class HostTools:
    """The programs of this machine: for tests, and where bits need not be the same elsewhere."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        return self._root / name

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
        name = os.fspath(argv[0])
        program = require(name, package=_PACKAGES.get(name))
        full = dict(os.environ if env is None else env)
        return run([program, *argv[1:]], timeout=timeout, check=check, stdin=stdin, env=full)


def tool_environment(timestamp: int, **extra: str) -> dict[str, str]:
    """Return an environment in which programs have one locale, one time zone and one date."""
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(timestamp),
        **extra,
    }
