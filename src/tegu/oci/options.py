"""Mount options of config.json: which change the mount, which the file system, which are refused.

The words are those of mount(8) that the specification lists (config.md, "Linux mount options").
"""

from __future__ import annotations

from tegu.errors import UnsupportedError
from tegu.linux import libc, mountapi
from tegu.oci.fields import ConfigError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PROPAGATION", "WORDS", "Options", "parse"]

PROPAGATION = {
    "private": libc.MS_PRIVATE,
    "slave": libc.MS_SLAVE,
    "shared": libc.MS_SHARED,
    "unbindable": libc.MS_UNBINDABLE,
}
"""With an "r" before it the word means all mounts below as well."""

_SET = {
    "ro": mountapi.MOUNT_ATTR_RDONLY,
    "nosuid": mountapi.MOUNT_ATTR_NOSUID,
    "nodev": mountapi.MOUNT_ATTR_NODEV,
    "noexec": mountapi.MOUNT_ATTR_NOEXEC,
    "nodiratime": mountapi.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": mountapi.MOUNT_ATTR_NOSYMFOLLOW,
}
# What takes a restriction back. It only undoes an earlier word: a mount that the host holds
# read-only stays so.
_UNDO = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "diratime": "nodiratime",
    "symfollow": "nosymfollow",
}
_ATIME = {"relatime": 0, "norelatime": 0, "noatime": 0x10, "atime": 0, "strictatime": 0x20}
_ATIME["nostrictatime"] = 0
# Switches of the file system itself; with a bind mount there is none to switch.
_SUPER = ("sync", "dirsync", "lazytime", "mand", "iversion", "silent")
_NOTHING = ("defaults", "async", "nolazytime", "nomand", "noiversion", "loud", "norelatime")
_REFUSED = {
    "remount": "mounts are made whole, not changed afterwards",
    "idmap": "id-mapped mounts are not made",
    "ridmap": "id-mapped mounts are not made",
}

WORDS = tuple(
    sorted(
        {"bind", "rbind", "tmpcopyup", *PROPAGATION, *(f"r{p}" for p in PROPAGATION)}
        | {*_SET, *_UNDO, *(f"r{w}" for w in (*_SET, *_UNDO)), *_ATIME, *_SUPER, *_NOTHING}
    )
)
"""Every option that has a meaning here; others are the file system's own."""


class Options:
    """What a mount's options come to."""

    __slots__ = ("atime", "bind", "copy_up", "data", "flags", "propagation", "recursive", "rflags")

    def __init__(self) -> None:
        self.bind = False
        self.recursive = False
        """Whether a bind takes the mounts below its source along."""
        self.flags = 0
        """MOUNT_ATTR_* of this mount."""
        self.rflags = 0
        """MOUNT_ATTR_* of this mount and all below it."""
        self.atime: int | None = None
        self.propagation: list[tuple[int, bool]] = []
        """MS_* and whether it is for all mounts below too, in order."""
        self.copy_up = False
        self.data: dict[str, str | None] = {}
        """For the file system."""


def parse(words: Sequence[str], kind: str, at: str) -> Options:
    """Return what `words` mean for a mount of type `kind`; `at` is the field's name for errors.

    Raises ConfigError for a word that a bind mount cannot have, UnsupportedError for refused ones.
    """
    found = Options()
    found.bind = kind in ("bind", "rbind") or "bind" in words or "rbind" in words
    found.recursive = kind == "rbind" or "rbind" in words
    for word in words:
        if not word:
            continue
        if word in _REFUSED or word.startswith(("idmap=", "ridmap=")):
            reason = _REFUSED[word.partition("=")[0]]
            raise UnsupportedError(f"{at}: {word}: {reason}")
        if word in ("bind", "rbind") or word in _NOTHING:
            continue
        if _flag(found, word):
            continue
        if word == "tmpcopyup" and kind == "tmpfs":
            found.copy_up = True
        elif word in _SUPER:
            if not found.bind:
                found.data[word] = None
        elif found.bind:
            raise ConfigError(f"{at}: {word}: not an option of a bind mount")
        else:
            name, equals, value = word.partition("=")
            found.data[name] = value if equals else None
    return found


def _flag(found: Options, word: str) -> bool:
    plain = word.removeprefix("r")
    if word in PROPAGATION or (word[:1] == "r" and plain in PROPAGATION):
        recursive = word not in PROPAGATION
        found.propagation.append((PROPAGATION[plain if recursive else word], recursive))
    elif word in _SET:
        found.flags |= _SET[word]
    elif word in _UNDO:
        found.flags &= ~_SET[_UNDO[word]]
    elif word in _ATIME:
        found.atime = _ATIME[word]
    elif word[:1] == "r" and plain in _SET:
        found.rflags |= _SET[plain]
    elif word[:1] == "r" and plain in _UNDO:
        found.rflags &= ~_SET[_UNDO[plain]]
    elif word[:1] == "r" and plain in ("noatime", "strictatime", "relatime"):
        raise UnsupportedError(f"mount option {word}: access times of all mounts below")
    else:
        return False
    return True
