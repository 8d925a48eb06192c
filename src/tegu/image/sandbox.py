"""A tree in which programs of the system being built are run, cut off from this machine.

Used inside `tegu.linux.run_isolated`: root there is not root here, there is no network, and
process 1's death ends everything. Programs get the tree as their `/` by pivot_root, so that this
machine's files are out of their reach.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tegu.linux import bind, libc, mount, overlay, pivot, unmount
from tegu.process import Completed, run

__all__ = ["Sandbox", "sandbox"]

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}


@dataclass(frozen=True)
class Sandbox:
    """A mounted tree. `root` is where this process sees it; `environment` is what programs get."""

    root: Path
    environment: Mapping[str, str]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 600,
        check: bool = True,
        stdin: str | bytes | None = None,
    ) -> Completed:
        """Run a program of the tree in the tree."""
        root = self.root

        def enter() -> None:
            libc.unshare(libc.CLONE_NEWNS)
            pivot(root)

        return run(
            argv,
            env={**self.environment, **(env or {})},
            timeout=timeout,
            check=check,
            stdin=stdin,
            prepare=enter,
        )


@contextmanager
def sandbox(
    lower: Sequence[Path],
    scratch: Path,
    *,
    upper: Path | None,
    timestamp: int,
    binds: Mapping[Path, str] | None = None,
    devices: bool = True,
) -> Iterator[Sandbox]:
    """Mount the layers (topmost first) and what programs expect: /proc, /dev, /run, /tmp.

    With `upper` the tree can be written, and all that is written is there when the block ends.
    `binds` makes further paths visible: outside path to absolute path inside, which must exist.
    """
    root = scratch / "root"
    work = scratch / "work"
    root.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    overlay(lower, root, upper=upper, work=work if upper is not None else None)
    try:
        if devices:
            _virtual_file_systems(root)
        for outside, inside in (binds or {}).items():
            bind(outside, root / inside.lstrip("/"))
        yield Sandbox(root, _environment(timestamp))
    finally:
        unmount(root)


def _virtual_file_systems(root: Path) -> None:
    nothing = libc.MS_NOSUID | libc.MS_NODEV
    mount("tmpfs", root / "run", flags=nothing, data="mode=0755")
    (root / "run/lock").mkdir(mode=0o1777)
    mount("tmpfs", root / "tmp", flags=nothing, data="mode=1777")
    mount("proc", root / "proc", flags=nothing | libc.MS_NOEXEC)
    mount("tmpfs", root / "dev", flags=libc.MS_NOSUID, data="mode=0755")
    for name in _DEVICES:
        target = root / "dev" / name
        target.touch()
        bind(Path("/dev") / name, target)
    for name, to in _DEV_LINKS.items():
        (root / "dev" / name).symlink_to(to)
    (root / "dev/shm").mkdir(mode=0o1777)


def _environment(timestamp: int) -> dict[str, str]:
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "TZ": "UTC",
        "DEBIAN_FRONTEND": "noninteractive",
        "DEBCONF_NONINTERACTIVE_SEEN": "true",
        "SOURCE_DATE_EPOCH": str(timestamp),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TEGU_BUILD": "1",
        **({"DPKG_COLORS": "never"} if os.environ.get("TERM") else {}),
    }
