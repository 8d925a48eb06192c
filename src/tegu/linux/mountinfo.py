"""Mount namespaces, and what is mounted in each (mount_namespaces(7), proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["Mount", "Namespace", "namespaces", "parse_mountinfo"]


class Mount(NamedTuple):
    """A mount: `device` is major:minor, `root` the part of the file system that is shown."""

    device: str
    root: str
    mountpoint: str
    kind: str
    source: str


@dataclass(frozen=True)
class Namespace:
    """A mount namespace, seen through the first process that is in it."""

    number: int
    pid: int
    mounts: tuple[Mount, ...]

    @property
    def root(self) -> tuple[str, str]:
        """What is mounted at `/`, last: device and root."""
        found = [(m.device, m.root) for m in self.mounts if m.mountpoint == "/"]
        return found[-1] if found else ("", "")


def parse_mountinfo(content: str) -> list[Mount]:
    """Read a mountinfo file; a line that is none is left out."""
    found = []
    for line in content.splitlines():
        words = line.split(" ")
        if len(words) < 9 or "-" not in words[6:]:
            continue
        rest = words[words.index("-", 6) + 1 :]
        if len(rest) >= 2:
            found.append(
                Mount(words[2], _plain(words[3]), _plain(words[4]), rest[0], _plain(rest[1]))
            )
    return found


def namespaces(proc: Path, pids: Iterable[int]) -> list[Namespace]:
    """Return each mount namespace that a process is in, that of process 1 first."""
    seen: dict[int, Namespace] = {}
    for pid in sorted(pids):
        try:
            number = os.stat(f"{proc}/{pid}/ns/mnt").st_ino  # noqa: PTH116
        except OSError:
            continue
        if number not in seen:
            seen[number] = Namespace(number, pid, tuple(_mounts_of(proc / str(pid))))
    return list(seen.values())


def _mounts_of(process: Path) -> list[Mount]:
    try:
        return parse_mountinfo((process / "mountinfo").read_text(errors="replace"))
    except OSError:
        return []  # gone meanwhile


def _plain(word: str) -> str:
    """Undo the octal escapes for space, tab, newline and backslash."""
    return re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), word)
