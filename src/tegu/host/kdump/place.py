"""Where a directory really is: the file system and the device that the capture kernel must mount.

/proc/self/mountinfo as in proc_pid_mountinfo(5); UUIDs from blkid(8).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import TeguError, UnsupportedError
from tegu.process import run

__all__ = ["DiskPlace", "find_place", "parse_mountinfo"]

FILESYSTEMS = ("ext4", "xfs", "btrfs")
"""What the capture kernel writes to."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: what of the file system (`root`) is seen at `point`."""

    root: str
    point: str
    fstype: str
    source: str
    options: str


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """A directory as the capture kernel finds it: `path` begins at the file system's own root."""

    uuid: str
    fstype: str
    device: str
    path: str


def parse_mountinfo(text: str) -> list[Mount]:
    """Read the text of /proc/PID/mountinfo; lines of another form are passed over."""
    mounts = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        first, last = left.split(" "), right.split(" ")
        if dash and len(first) >= 6 and len(last) >= 3:
            root, point, source = (_unescape(w) for w in (first[3], first[4], last[1]))
            mounts.append(Mount(root, point, last[0], source, last[2]))
    return mounts


def _unescape(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), word)


def find_place(directory: Path, mountinfo: str | None = None) -> DiskPlace:
    """Return where `directory`, which must exist, is for another kernel.

    Raises UnsupportedError for what our capture kernel cannot mount: network file systems, LVM,
    encryption, RAID, memory, overlays.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    mount = _mount_of(str(directory.resolve()), parse_mountinfo(text))
    kinds = ", ".join(FILESYSTEMS)
    other = f"set another target in /etc/tegu/kdump.toml: a directory on {kinds}, or ssh://"
    if mount.fstype not in FILESYSTEMS:
        raise UnsupportedError(
            f"a crash dump cannot be written to {directory}: it is on {mount.fstype}", hint=other
        )
    device = mount.source
    if device == "/dev/root":
        device = _by_number(directory)
    if not device.startswith("/dev/") or Path(device).resolve().name.startswith(
        ("dm-", "md", "loop", "zram")
    ):
        raise UnsupportedError(
            f"a crash dump cannot be written to {directory}: {device} is not a plain disk or"
            " partition",
            hint=other,
        )
    uuid = run(["blkid", "-o", "value", "-s", "UUID", device]).stdout.strip()
    if not re.fullmatch(r"[0-9A-Fa-f-]{4,64}", uuid):
        raise TeguError(f"cannot find out the UUID of the file system on {device}")
    inside = os.path.relpath(directory.resolve(), mount.point)
    return DiskPlace(
        uuid, mount.fstype, device, os.path.normpath(f"{mount.root.rstrip('/')}/{inside}")
    )


def _mount_of(path: str, mounts: list[Mount]) -> Mount:
    best: Mount | None = None
    for mount in mounts:
        point = mount.point.rstrip("/")
        # A later line lies over an earlier one at the same place.
        if (path == point or path.startswith(f"{point}/")) and (
            best is None or len(mount.point) >= len(best.point)
        ):
            best = mount
    if best is None:
        raise TeguError(f"cannot find out which file system {path} is on")
    return best


def _by_number(directory: Path) -> str:
    device = directory.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return f"/dev/{link.resolve().name}"
