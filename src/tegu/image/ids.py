"""System users and groups with numbers that depend on their names alone.

adduser and systemd-sysusers give the next free number, so that numbers depend on the order in
which packages were configured. Here every dynamic number (100 to 999, Debian Policy 9.2.2) is
replaced by one derived from the name; what maintainer scripts made for the user follows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tegu.errors import BuildError

__all__ = ["allocate", "renumber"]

_FIRST, _LAST = 200, 899
_DYNAMIC = range(100, 1000)


def allocate(names: Iterable[str]) -> dict[str, int]:
    """Return a number in 200..899 for each name: a hash, probed linearly, names in sorted order."""
    span = _LAST - _FIRST + 1
    taken: dict[int, str] = {}
    for name in sorted(set(names)):
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % span
        for step in range(span):
            number = _FIRST + (start + step) % span
            if number not in taken:
                taken[number] = name
                break
        else:
            raise BuildError(f"more than {span} system users and groups")
    return {name: number for number, name in taken.items()}


def _rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    return [line.split(":") for line in path.read_text().splitlines() if line]


def _write(path: Path, rows: Iterable[list[str]], mode: int) -> None:
    # Rewritten in place: owner and mode of a file that exists stay as they are.
    new = "".join(":".join(row) + "\n" for row in rows)
    if not path.exists() or path.read_text() != new:
        path.write_text(new)
        path.chmod(mode)


def renumber(root: Path, changed: Iterable[Path]) -> dict[str, int]:
    """Give users and groups in `root`/etc their own numbers and sort the tables.

    `changed` are the directories that may hold files of dynamic owners (overlay upper layers, or
    the root itself). The date of last password change is emptied: it would be the build's, and
    shadow(5) takes an empty one as "no ageing". Returns the numbers by name.
    """
    etc = root / "etc"
    users, groups = _rows(etc / "passwd"), _rows(etc / "group")
    dynamic_users = {r[0]: int(r[2]) for r in users if int(r[2]) in _DYNAMIC}
    dynamic_groups = {r[0]: int(r[2]) for r in groups if int(r[2]) in _DYNAMIC}
    numbers = allocate([*dynamic_users, *dynamic_groups])
    uids = {old: numbers[name] for name, old in dynamic_users.items()}
    gids = {old: numbers[name] for name, old in dynamic_groups.items()}
    for row in users:
        row[2] = str(uids.get(int(row[2]), row[2]))
        row[3] = str(gids.get(int(row[3]), row[3]))
    for row in groups:
        row[2] = str(gids.get(int(row[2]), row[2]))
        row[3] = ",".join(sorted(filter(None, row[3].split(","))))
    users.sort(key=lambda r: (int(r[2]), r[0]))
    groups.sort(key=lambda r: (int(r[2]), r[0]))
    _write(etc / "passwd", users, 0o644)
    _write(etc / "group", groups, 0o644)
    _sort_shadow(etc / "shadow", [r[0] for r in users])
    _sort_gshadow(etc / "gshadow", [r[0] for r in groups])
    if any(old != new for old, new in [*uids.items(), *gids.items()]):
        for directory in changed:
            _change_owners(directory, uids, gids)
    return numbers


def _sort_shadow(path: Path, order: list[str]) -> None:
    rank = {name: n for n, name in enumerate(order)}
    rows = _rows(path)
    for row in rows:
        row[2] = ""
    rows.sort(key=lambda r: (rank.get(r[0], len(rank)), r[0]))
    _write(path, rows, 0o640)


def _sort_gshadow(path: Path, order: list[str]) -> None:
    rank = {name: n for n, name in enumerate(order)}
    rows = _rows(path)
    for row in rows:
        row[3] = ",".join(sorted(filter(None, row[3].split(","))))
    rows.sort(key=lambda r: (rank.get(r[0], len(rank)), r[0]))
    _write(path, rows, 0o640)


def _change_owners(directory: Path, uids: Mapping[int, int], gids: Mapping[int, int]) -> None:
    stack = [os.fspath(directory)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if info.st_uid in uids or info.st_gid in gids:
                    os.chown(
                        entry.path,
                        uids.get(info.st_uid, info.st_uid),
                        gids.get(info.st_gid, info.st_gid),
                        follow_symlinks=False,
                    )
                    if not entry.is_symlink():
                        os.chmod(entry.path, info.st_mode & 0o7777)  # noqa: PTH101 - chown clears setuid
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
