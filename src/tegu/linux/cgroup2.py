"""Control groups of version 2 as a tree of files: where it is, what it offers, reads and writes.

Documentation/admin-guide/cgroup-v2.rst. Paths of groups are relative to the hierarchy's root and
begin with a slash, as in /proc/PID/cgroup.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UnsupportedError

__all__ = ["Hierarchy", "Pressure", "find_hierarchy", "flat_keyed", "parse_pressure", "write_once"]


@dataclass(frozen=True)
class Pressure:
    """One line of a pressure file (Documentation/accounting/psi.rst): percent, and `total` us."""

    avg10: float
    avg60: float
    total: int


@dataclass(frozen=True)
class Hierarchy:
    """A version 2 hierarchy whose root group is the directory `root`."""

    root: Path

    def directory(self, group: str) -> Path:
        """Return the directory of `group`; refuses a path that would leave the hierarchy."""
        parts = [p for p in group.split("/") if p]
        if ".." in parts:
            raise ValueError(f"{group}: a group's path has no '..'")
        return self.root.joinpath(*parts)

    def group(self, directory: Path) -> str:
        """Return the group of a directory of this hierarchy."""
        relative = directory.relative_to(self.root).as_posix()
        return "/" if relative == "." else f"/{relative}"

    def groups(self) -> list[str]:
        """Return every group but the root; those that vanish meanwhile are left out."""
        found = []
        for folder, names, _ in os.walk(self.root):
            names.sort()
            if Path(folder) != self.root:
                found.append(self.group(Path(folder)))
        return sorted(found)

    def controllers(self, group: str = "/") -> frozenset[str]:
        """Return which controllers `group` has."""
        try:
            text = (self.directory(group) / "cgroup.controllers").read_text()
        except OSError:
            return frozenset()
        return frozenset(text.split())

    def require(self, controller: str) -> None:
        """Raise UnsupportedError, with where it is instead, unless the root has `controller`."""
        if controller in self.controllers():
            return
        first = _first_version().get("blkio" if controller == "io" else controller)
        if first:
            raise UnsupportedError(
                f"the controller {controller} is in a version 1 hierarchy ({first})",
                hint="boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=all",
            )
        raise UnsupportedError(f"this kernel has no cgroup controller {controller}")

    def pressure(self, group: str, resource: str) -> Pressure | None:
        """Return the "some" line of `resource`.pressure; None where there is none."""
        try:
            text = (self.directory(group) / f"{resource}.pressure").read_text()
        except OSError:
            return None
        return parse_pressure(text)

    def stat(self, group: str, name: str) -> dict[str, int]:
        """Return a flat keyed file such as memory.stat; empty when the group is gone."""
        try:
            return flat_keyed((self.directory(group) / name).read_text())
        except OSError:
            return {}


def find_hierarchy() -> Hierarchy:
    """Return where version 2 is mounted, as /proc/self/mountinfo says; raises UnsupportedError."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Hierarchy(Path(fields[4]))
    raise UnsupportedError(
        "no cgroup hierarchy of version 2 is mounted",
        hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    )


def _first_version() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        rest = fields[fields.index("-") + 1 :]
        if rest[0] == "cgroup":
            for name in rest[2].split(","):
                found.setdefault(name, fields[4])
    return found


def flat_keyed(text: str) -> dict[str, int]:
    """Return `KEY VALUE` lines as numbers; lines of another form are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().lstrip("-").isascii() and value.strip().lstrip("-").isdigit():
            found[key] = int(value)
    return found


def parse_pressure(text: str) -> Pressure | None:
    """Return the "some" line of a pressure file, or None when it is not one."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] != ["some"]:
            continue
        try:
            values = dict(word.split("=", 1) for word in words[1:])
            return Pressure(float(values["avg10"]), float(values["avg60"]), int(values["total"]))
        except (ValueError, KeyError):
            return None
    return None


def write_once(path: Path, text: str, *, nonblocking: bool = False) -> None:
    """Write `text` in one write(2), as kernel files want it; OSError names the file.

    `nonblocking`: with O_NONBLOCK, a lowered memory.max or memory.high returns at once instead of
    reclaiming in the writer (Linux 6.16, cgroup-v2.rst on memory.high); older kernels ignore it.
    """
    flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | (os.O_NONBLOCK if nonblocking else 0)
    fd = -1
    try:
        fd = os.open(path, flags)
        os.write(fd, text.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        if fd >= 0:
            os.close(fd)
