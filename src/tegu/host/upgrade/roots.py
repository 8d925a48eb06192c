"""Roots on a btrfs file system: which one runs, which one boots next, a snapshot of one.

A root is named by its path from the top of the file system: "" is the top itself, where an image
has its system; others lie below `.tegu/roots`. What boots is btrfs' default subvolume
(btrfs-subvolume(8), set-default): the kernel's command line names none.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UnsupportedError, UpgradeError
from tegu.process import CommandError, require, run

__all__ = ["ROOTS", "Roots", "current_root", "opened"]

ROOTS = ".tegu/roots"
_TOP = 5  # the id of the top-level subvolume, BTRFS_FS_TREE_OBJECTID


@dataclass(frozen=True, slots=True)
class _Mounted:
    """The root mount: path of the subvolume in its file system, type, device."""

    name: str
    kind: str
    source: str


def current_root(mountinfo: str | None = None) -> _Mounted:
    """Return what is mounted at /, from mountinfo (proc_pid_mountinfo(5))."""
    text = mountinfo if mountinfo is not None else Path("/proc/self/mountinfo").read_text()
    found = None
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, after = head.split(), tail.split()
        if len(fields) >= 5 and fields[4] == "/" and len(after) >= 2:
            found = _Mounted(_unescape(fields[3]).strip("/"), after[0], after[1])
    if found is None:
        raise UnsupportedError("nothing is mounted at /")
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


class Roots:
    """The roots of the running machine's file system; `top` is where its top is mounted."""

    def __init__(self, top: Path, current: str) -> None:
        self.top = top
        self.current = current

    def path(self, name: str) -> Path:
        """Return where the root `name` can be seen."""
        return self.top / name

    def names(self) -> list[str]:
        """Return the roots that there are, oldest first; the top only when it has a system."""
        kept = self.top / ROOTS
        found = [f"{ROOTS}/{p.name}" for p in sorted(kept.iterdir())] if kept.is_dir() else []
        return [*([""] if (self.top / "usr/lib/os-release").exists() else []), *found]

    def default(self) -> str:
        """Return the root that boots next."""
        said = _btrfs("subvolume", "get-default", self.top)
        match = re.search(r" path (\S.*)$", said.strip())
        return match[1] if match else ""

    def set_default(self, name: str) -> None:
        """Make `name` the root that boots next; on the disk when this returns."""
        if name:
            _btrfs("subvolume", "set-default", self.path(name))
        else:
            _btrfs("subvolume", "set-default", str(_TOP), self.top)
        self.sync()

    def snapshot(self, name: str) -> None:
        """Make the root `name` as a copy of the current one."""
        self.path(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _btrfs("subvolume", "snapshot", self.path(self.current), self.path(name))
        self.sync()

    def drop(self, name: str) -> None:
        """Remove a root; never the current one, what boots next, or the top."""
        if not name or name in (self.current, self.default()):
            raise UpgradeError(f"the root {name or 'at the top'} is in use and stays")
        # While it ran, systemd may have made subvolumes in it (tmpfiles.d(5), v and q).
        listed = _btrfs("subvolume", "list", "-o", self.path(name)).splitlines()
        inside = [m[1] for line in listed if (m := re.search(r" path (\S.*)$", line.strip()))]
        for path in sorted(inside, key=lambda p: -p.count("/")):
            if path.startswith(f"{name}/"):
                _btrfs("subvolume", "delete", self.top / path)
        _btrfs("subvolume", "delete", "--commit-after", self.path(name))

    def sync(self) -> None:
        """Bring the file system to the disk."""
        _btrfs("filesystem", "sync", self.top)


@contextmanager
def opened() -> Iterator[Roots]:
    """Mount the top of the root's file system privately and yield its roots.

    Raises UnsupportedError where the root is no btrfs.
    """
    root = current_root()
    if root.kind != "btrfs":
        raise UnsupportedError(
            f"the root is {root.kind}: an upgrade that can be undone needs btrfs",
            hint='filesystem = "btrfs" in the definition; --no-snapshot upgrades without a way '
            "back",
        )
    if os.geteuid() != 0:
        raise UpgradeError("only root may upgrade the machine", hint="sudo tegu upgrade")
    with tempfile.TemporaryDirectory(prefix="tegu-top-", dir="/run") as place:
        try:
            run(["mount", "-t", "btrfs", "-o", f"subvolid={_TOP}", _device(root.source), place])
        except CommandError as e:
            raise UpgradeError(f"cannot mount the root's file system: {e.message}") from e
        try:
            yield Roots(Path(place), root.name)
        finally:
            run(["umount", place])


def _device(source: str) -> str:
    """Return the root's device; a kernel that mounted it itself calls it /dev/root."""
    if source != "/dev/root":
        return source
    words = Path("/proc/cmdline").read_text().split()
    named = next((w.removeprefix("root=") for w in reversed(words) if w.startswith("root=")), "")
    if named.startswith("/dev/"):
        return named
    key, _, value = named.partition("=")
    folder = {"PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel", "UUID": "by-uuid"}.get(key)
    if folder is None:
        raise UpgradeError(f"root={named} on the kernel's command line is not understood")
    return f"/dev/disk/{folder}/{value}"


def _btrfs(*arguments: str | Path) -> str:
    try:
        return run([require("btrfs", package="btrfs-progs"), *arguments], timeout=300).stdout
    except CommandError as e:
        raise UpgradeError(e.message) from e
