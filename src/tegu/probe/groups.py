"""Which control group a number means: the kernel's id of one is its directory's inode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from tegu.errors import UsageError

__all__ = ["CgroupNames", "Selection"]

# The order of HIERARCHY_* in bpf/tegu.bpf.h; the first is version 2.
_HIERARCHIES = {"": 0, "cpu": 1, "memory": 2, "blkio": 3}
_CONTROLLER_OF_V2 = {"cpu": "cpu", "memory": "memory", "blkio": "io"}


class Selection(NamedTuple):
    """A control group as the programs know it: id, and levels below the root."""

    id: int
    level: int


class CgroupNames:
    """The control groups of the hierarchy that accounts for `controller`, by id.

    That is version 2, unless only version 1 has the controller (cgroups(7)); "unified" is version 2
    whatever else there is (sockets belong there).
    """

    def __init__(self, controller: str, *, mounts: str = "/proc/self/mountinfo") -> None:
        self.root: Path | None = None
        self.hierarchy = 0
        found = _mounts(Path(mounts).read_text())
        second = found.get("")
        self.root = second
        if controller in found and not (second and _offers(second, controller)):
            self.root = found[controller]
            self.hierarchy = _HIERARCHIES[controller]
        self._known: dict[int, str] = {}
        self._missing: set[int] = set()

    def name(self, number: int) -> str:
        """Return the path below the root ("/" is the root); a group that is gone: `#id`."""
        if number not in self._known and number not in self._missing:
            self._walk()
            if number not in self._known:
                self._missing.add(number)
        return self._known.get(number, f"#{number}")

    def select(self, path: str) -> Selection:
        """Find a group by its path below the root or its directory; raises UsageError."""
        if self.root is None:
            raise UsageError("no cgroup hierarchy is mounted here")
        given = Path(path)
        directory = given if given.is_relative_to(self.root) else self.root / path.lstrip("/")
        try:
            number = directory.stat().st_ino
        except OSError as e:
            raise UsageError(f"no such cgroup: {path}", hint=f"paths are below {self.root}") from e
        if not directory.is_dir():
            raise UsageError(f"not a cgroup: {path}")
        return Selection(number, len(directory.relative_to(self.root).parts))

    def _walk(self) -> None:
        if self.root is None:
            return
        pending = [(str(self.root), "/")]
        while pending:
            directory, name = pending.pop()
            try:
                self._known[os.stat(directory).st_ino] = name  # noqa: PTH116 - thousands of them
                with os.scandir(directory) as entries:
                    pending.extend(
                        (e.path, f"{name.rstrip('/')}/{e.name}")
                        for e in entries
                        if e.is_dir(follow_symlinks=False)
                    )
            except OSError:
                continue  # removed while we looked


def _mounts(text: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for line in text.splitlines():
        fields = line.split()
        if "-" not in fields:
            continue
        rest = fields[fields.index("-") + 1 :]
        where = Path(fields[4].replace("\\040", " "))
        if rest[0] == "cgroup2":
            found.setdefault("", where)
        elif rest[0] == "cgroup" and len(rest) > 2:
            for option in rest[2].split(","):
                if option in _HIERARCHIES:
                    found.setdefault(option, where)
    return found


def _offers(root: Path, controller: str) -> bool:
    try:
        offered = (root / "cgroup.controllers").read_text().split()
    except OSError:
        return False
    return _CONTROLLER_OF_V2[controller] in offered
