"""Whom an image's programs run as: the word of its configuration, looked up in its own accounts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tegu.errors import SandboxError
from tegu.linux.openat import open_in_root

__all__ = ["Account", "find_account"]

_MOST = 2**20
_MAX_ID = 65535


@dataclass(frozen=True)
class Account:
    """A user by number: `words` is "UID:GID[,GID...]", `home` the directory or ""."""

    words: str
    home: str


def find_account(root: int, user: str) -> Account:
    """Return the account that `user` ("", "NAME", "UID", either with ":GROUP") means.

    Looked up in /etc/passwd and /etc/group below the descriptor `root`, as the image
    specification says. Raises SandboxError for a name that is not there.
    """
    name, mark, group = (user or "0").partition(":")
    users = _table(root, "/etc/passwd", 6)
    groups = _table(root, "/etc/group", 3)
    found = next((u for u in users if u[0] == name), None)
    if found is None and name.isdigit():
        found = next((u for u in users if u[2] == name), None)
    if found is None and not name.isdigit():
        raise SandboxError(f"User: {name!r} is not in the image's /etc/passwd")
    uid = found[2] if found else name
    gid = found[3] if found else "0"
    more: list[str] = []
    if mark:
        named = next((g for g in groups if g[0] == group), None)
        if named is None and not group.isdigit():
            raise SandboxError(f"User: {group!r} is not in the image's /etc/group")
        gid = named[2] if named else group
    elif found:
        more = [g[2] for g in groups if len(g) > 3 and found[0] in g[3].split(",") and g[2] != gid]
    ids = [_number(i) for i in dict.fromkeys((uid, gid, *more))]
    words = f"{_number(uid)}:{_number(gid)}"
    if more:
        words += "".join(f",{_number(i)}" for i in dict.fromkeys(more))
    if max(ids) > _MAX_ID:
        raise SandboxError(f"User: {max(ids)} is an id that no box has (up to {_MAX_ID})")
    return Account(words, found[5] if found else "")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise SandboxError(f"User: {text[:40]!r} is no id")
    return int(text)


def _table(root: int, path: str, fields: int) -> list[list[str]]:
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as f:
        text = f.read(_MOST).decode(errors="surrogateescape")
    rows = (line.split(":") for line in text.splitlines())
    return [row for row in rows if len(row) >= fields]
