"""The steps of a recipe: shell commands in a sandbox without network, without root, without home.

They see this machine's /usr read-only (its compilers, so that another machine's may write other
bytes), the source at /build and the directory that becomes the package at /dest. Paths, time,
locale and order are the same in every build.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tegu.errors import BuildError, UnsupportedError
from tegu.linux import bind, libc, mount, pivot, run_isolated
from tegu.packages.deb_write import DebEntry
from tegu.process import require, run

__all__ = ["collect", "run_steps"]

_HOURS = 3600
_SHARED = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What programs of /usr lean on, and what says nothing about this machine.
_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "java-21-openjdk", "perl")
_DEVICES = ("null", "zero", "full", "random", "urandom")


def run_steps(
    steps: Sequence[str], needs: Sequence[str], source: Path, dest: Path, *, timestamp: int
) -> None:
    """Run `steps` in `source`; what they leave below $DESTDIR is in `dest`.

    Raises UnsupportedError when a program of `needs` is missing, BuildError when a step fails.
    """
    for program in needs:
        require(program)
    run_isolated(lambda _: _inside(steps, source, dest, timestamp))


def _inside(steps: Sequence[str], source: Path, dest: Path, timestamp: int) -> None:
    root = source.parent / "root"
    root.mkdir()
    mount("tmpfs", root, flags=libc.MS_NOSUID | libc.MS_NODEV, data="mode=0755")
    for name in (*_SHARED, *(f"etc/{e}" for e in _ETC)):
        _share(Path("/") / name, root / name)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for place, name in ((source, "build"), (dest, "dest")):
        (root / name).mkdir()
        bind(place, root / name)
    (root / "tmp").mkdir(mode=0o1777)
    (root / "proc").mkdir()
    mount("proc", root / "proc", flags=libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    (root / "dev").mkdir()
    for name in _DEVICES:
        (root / "dev" / name).touch()
        bind(Path("/dev") / name, root / "dev" / name)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "dumb",
        "SOURCE_DATE_EPOCH": str(timestamp),
        "PYTHONHASHSEED": "0",
        "DESTDIR": "/dest",
        "CFLAGS": "-O2 -ffile-prefix-map=/build=.",
        "CXXFLAGS": "-O2 -ffile-prefix-map=/build=.",
    }

    def enter() -> None:
        os.umask(0o022)
        libc.unshare(libc.CLONE_NEWNS)
        pivot(root)

    for number, step in enumerate(steps, 1):
        command = ["/bin/sh", "-euc", f"cd /build\n{step}"]
        done = run(command, env=environment, prepare=enter, check=False, timeout=4 * _HOURS)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            shown = step.strip().splitlines()[0]
            raise BuildError(
                f"step {number} ({shown}) exited with {done.returncode}: "
                f"{' / '.join(said[-3:]) or 'no message'}",
                hint="there is no network in a step: sources come from [source]",
            )


def _share(outside: Path, inside: Path) -> None:
    if not outside.exists():
        return
    inside.parent.mkdir(parents=True, exist_ok=True)
    if outside.is_symlink() and outside.parent == Path("/"):
        inside.symlink_to(outside.readlink())
        return
    inside.mkdir() if outside.is_dir() else inside.touch()
    bind(outside, inside, recursive=False, read_only=True)


def collect(dest: Path, *, shown: Callable[[Path], str] = str) -> list[DebEntry]:
    """Return what is below `dest` as entries of a package, sorted by path.

    Raises BuildError for what cannot be in a package (devices, sockets), UnsupportedError for set
    ids, which a recipe says in `[[file]]` where someone sees it.
    """
    found: list[DebEntry] = []
    for path in sorted(dest.rglob("*")):
        name = f"/{path.relative_to(dest)}"
        info: Any = path.lstat()
        mode = stat.S_IMODE(info.st_mode)
        if mode & (stat.S_ISUID | stat.S_ISGID):
            raise UnsupportedError(f"a step made {name} set-id: list it in [[file]] with its mode")
        if stat.S_ISLNK(info.st_mode):
            found.append(DebEntry(name, target=str(path.readlink())))
        elif stat.S_ISDIR(info.st_mode):
            found.append(DebEntry(name, mode=0o755))
        elif stat.S_ISREG(info.st_mode):
            executable = bool(mode & 0o100)
            found.append(DebEntry(name, path.read_bytes(), mode=0o755 if executable else 0o644))
        else:
            raise BuildError(f"a step left {name}, which is no file, directory or link")
    return found
