"""Users of the definition, written into the tables of a tree (passwd(5), group(5), shadow(5))."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tegu.definition import Definition, User
from tegu.errors import BuildError

__all__ = ["add_users", "owner_ids"]

_FIRST_UID = 1000


def _append(path: Path, line: str) -> None:
    text = path.read_text()
    path.write_text(text + ("" if text.endswith("\n") or not text else "\n") + line + "\n")


def _column(path: Path, key: int, value: int) -> dict[str, str]:
    rows = [line.split(":") for line in path.read_text().splitlines() if line]
    return {row[key]: row[value] for row in rows}


def owner_ids(root: Path, owner: str, group: str, *, path: str) -> tuple[int, int]:
    """Return (uid, gid) of names in the tree; BuildError says what is missing, for which file."""
    users = _column(root / "etc/passwd", 0, 2)
    groups = _column(root / "etc/group", 0, 2)
    if owner not in users:
        raise BuildError(f"{path}: there is no user {owner} in the image")
    if group not in groups:
        raise BuildError(f"{path}: there is no group {group} in the image")
    return int(users[owner]), int(groups[group])


def add_users(root: Path, definition: Definition) -> None:
    """Add `[[user]]` entries and set root's password."""
    etc = root / "etc"
    taken = {int(v) for v in _column(etc / "passwd", 0, 2).values()}
    taken |= {int(v) for v in _column(etc / "group", 0, 2).values()}
    for user in definition.user:
        if user.name in _column(etc / "passwd", 0, 2):
            raise BuildError(f"user {user.name}: a package made a user of this name already")
        uid = user.uid if user.uid is not None else _next(taken)
        taken.add(uid)
        _add(root, user, uid)
    password = definition.hardening.root_password
    _set_password(etc / "shadow", "root", "*" if password == "locked" else password)


def _next(taken: set[int]) -> int:
    uid = _FIRST_UID
    while uid in taken:
        uid += 1
    return uid


def _add(root: Path, user: User, uid: int) -> None:
    etc = root / "etc"
    home = f"/home/{user.name}"
    _append(etc / "group", f"{user.name}:x:{uid}:")
    _append(etc / "gshadow", f"{user.name}:!::")
    _append(etc / "passwd", f"{user.name}:x:{uid}:{uid}::{home}:{user.shell}")
    _append(etc / "shadow", f"{user.name}:{user.password_hash or '!'}::0:99999:7:::")
    groups = [*user.groups, "sudo"] if user.sudo else user.groups
    _join(etc, user.name, groups)
    directory = root / home.lstrip("/")
    if not directory.exists():
        skeleton = root / "etc/skel"
        if skeleton.is_dir():
            shutil.copytree(skeleton, directory, symlinks=True)
        else:
            directory.mkdir(parents=True)
    directory.chmod(0o700)
    if user.authorized_keys:
        keys = directory / ".ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_text("".join(f"{key}\n" for key in user.authorized_keys))
        keys.chmod(0o600)
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            os.chown(Path(parent) / name, uid, uid, follow_symlinks=False)
    os.chown(directory, uid, uid)
    if user.sudo:
        sudoers = etc / "sudoers.d" / f"90-{user.name}"
        if not sudoers.parent.is_dir():
            raise BuildError(f"user {user.name} has sudo = true, but sudo is not installed")
        sudoers.write_text(f"{user.name} ALL=(ALL:ALL) NOPASSWD: ALL\n")
        sudoers.chmod(0o440)


def _join(etc: Path, user: str, groups: Sequence[str]) -> None:
    for name, members_at in (("group", 3), ("gshadow", 3)):
        path = etc / name
        rows = [line.split(":") for line in path.read_text().splitlines() if line]
        known = {row[0] for row in rows}
        for group in groups:
            if name == "group" and group not in known:
                raise BuildError(f"user {user}: there is no group {group} in the image")
        for row in rows:
            if row[0] in groups:
                members = [m for m in row[members_at].split(",") if m]
                row[members_at] = ",".join([*members, user])
        path.write_text("".join(":".join(row) + "\n" for row in rows))


def _set_password(shadow: Path, user: str, value: str) -> None:
    rows = [line.split(":") for line in shadow.read_text().splitlines() if line]
    for row in rows:
        if row[0] == user:
            row[1] = value
    shadow.write_text("".join(":".join(row) + "\n" for row in rows))
