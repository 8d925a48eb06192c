"""Templates: what boxes see as their "/" before they write to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UsageError
from tegu.linux import mountapi
from tegu.sandbox.state import state_directory

__all__ = ["Template", "find_template", "readable_paths"]

_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "alternatives",
    "debian_version",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "perl",
    "protocols",
    "python3",
    "services",
    "ssl",
)
"""Of the host's /etc: what programs need, and no word about this machine or its users."""
_ACCOUNTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
_DIRECTORIES = {
    "/dev": "0755",
    "/etc": "0755",
    "/proc": "0555",
    "/root": "0700",
    "/run": "0755",
    "/sys": "0555",
    "/tmp": "1777",
    "/usr": "0755",
    "/var": "0755",
    "/var/tmp": "1777",
}


@dataclass(frozen=True)
class Template:
    """`root` is a directory tree, or None for one made of `skeleton`.

    `skeleton` lists (path, "dir" | "link" | "file", mode or content); `mounts` lists (path inside,
    path outside): trees and files of the host that boxes see and cannot change.
    """

    name: str
    root: Path | None
    skeleton: Sequence[tuple[str, str, str | bytes]]
    mounts: Sequence[tuple[str, str]]

    def identity(self) -> tuple[int, int]:
        """Return device and inode of the root: others when the directory was replaced."""
        if self.root is None:
            return 0, 0
        about = self.root.stat()
        return about.st_dev, about.st_ino

    def open(self, idmap: int | None) -> tuple[int | None, list[tuple[str, int]], list[int]]:
        """Return the detached mounts as descriptors: (index of the root, mounts by index, all).

        `idmap` is the user namespace whose root is to own what root owns here.
        """
        fds: list[int] = []
        flags = mountapi.MOUNT_ATTR_NOSUID | mountapi.MOUNT_ATTR_NODEV
        try:
            index = None
            if self.root is not None:
                fds.append(
                    mountapi.detached(str(self.root), read_only=True, flags=flags, idmap=idmap)
                )
                index = 0
            mounts = []
            for inside, outside in self.mounts:
                mounts.append((inside, len(fds)))
                fds.append(mountapi.detached(outside, read_only=True, flags=flags, idmap=idmap))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return index, mounts, fds


def find_template(name: str) -> Template:
    """Return the template `name`: "host", or a directory's absolute path.

    Raises UsageError when the directory is missing or holds no root file system.
    """
    if name == "host":
        return _host()
    root = Path(name)
    if not root.is_dir():
        raise UsageError(f"template: {name} is not a directory")
    of_image = state_directory() / "images" / "trees" in root.parents  # whatever it holds
    if not of_image and not any((root / d).is_dir() for d in ("usr", "bin")):
        raise UsageError(
            f"template: {name} holds no root file system",
            hint="a directory with bin or usr in it, as `tegu build --format directory` makes",
        )
    return Template(name, root.resolve(), (), ())


def _host() -> Template:
    skeleton: list[tuple[str, str, str | bytes]] = [
        (path, "dir", mode) for path, mode in _DIRECTORIES.items()
    ]
    mounts = [("/usr", "/usr")]
    for name in _TOP:
        path = Path("/", name)
        if path.is_symlink():
            skeleton.append((f"/{name}", "link", str(path.readlink())))
        elif path.is_dir():
            skeleton.append((f"/{name}", "dir", "0755"))
            mounts.append((f"/{name}", f"/{name}"))
    # Copied, as each mount costs every box some time; root's own files stay out.
    # A Java's directory has links to its settings in /etc, java.security among them.
    for path in (*(Path("/etc", name) for name in _ETC), *sorted(Path("/etc").glob("java-*-*"))):
        skeleton += _copy(path)
    skeleton += [(path, "file", text.encode()) for path, text in _ACCOUNTS.items()]
    return Template("host", None, skeleton, mounts)


def _copy(path: Path) -> Iterator[tuple[str, str, str | bytes]]:
    if path.is_symlink():
        yield str(path), "link", str(path.readlink())
    elif path.is_dir() and path.stat().st_mode & 0o005 == 0o005:
        yield str(path), "dir", "0755"
        for child in sorted(path.iterdir()):
            yield from _copy(child)
    elif path.is_file() and path.stat().st_mode & 0o004:
        yield str(path), "file", path.read_bytes()


def readable_paths() -> list[str]:
    """Return what of this machine a program of the class `process` may read and run."""
    paths = ["/usr", *(f"/{name}" for name in _TOP), *(f"/etc/{name}" for name in _ETC)]
    return [path for path in (*paths, "/etc/passwd", "/etc/group") if Path(path).exists()]
