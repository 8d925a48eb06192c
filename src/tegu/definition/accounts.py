"""Rules for users, their keys and password hashes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from tegu.definition.locate import Location
from tegu.definition.models import Definition, User
from tegu.definition.problems import Flaw

__all__ = ["account_flaws"]

# The users that base-passwd makes on every Debian system, but root.
_SYSTEM_USERS = frozenset(
    [
        *("_apt", "backup", "bin", "daemon", "games", "irc", "list", "lp", "mail", "man"),
        *("news", "nobody", "proxy", "sync", "sys", "uucp", "www-data"),
    ]
)
# Methods of crypt(5) that hold up today: yescrypt, gost-yescrypt, scrypt, bcrypt, SHA-512, SHA-256.
_HASH = re.compile(r"\$(y|gy|7|2[abxy]|6|5)\$[!-9<-\[\]-~]+")
_WEAK_HASH = re.compile(r"\$(1|md5|sha1|3)[$,]")
_KEY = re.compile(
    r"(?:^|\s)((?:sk-)?(?:ssh|ecdsa)-[a-z0-9-]+(?:@openssh\.com)?)\s+([A-Za-z0-9+/]+=*)(?:\s|$)"
)
_KEY_TYPES = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256))"
    r"(-cert-v01)?(@openssh\.com)?"
)
_MAKE_HASH = "`mkpasswd -m yescrypt` makes one"


def account_flaws(definition: Definition) -> Iterator[Flaw]:
    """Yield what is wrong with users and passwords. Hashes and keys are never shown in full."""
    names: set[str] = set()
    ids: dict[int, str] = {}
    for index, user in enumerate(definition.user):
        here: Location = ("user", index)
        if user.name == "root":
            hint = "a password for root is hardening.root_password"
            yield Flaw((*here, "name"), "'root' is there already", hint)
        elif user.name in _SYSTEM_USERS or user.name.startswith("systemd-"):
            yield Flaw((*here, "name"), f"'{user.name}' is a system user")
        if user.name in names:
            yield Flaw((*here, "name"), f"'{user.name}' is there twice")
        names.add(user.name)
        if user.uid is not None:
            if user.uid in ids:
                what = f"{user.uid} is the uid of '{ids[user.uid]}' already"
                yield Flaw((*here, "uid"), what)
            ids.setdefault(user.uid, user.name)
        yield from _user(user, here)
    root = definition.hardening.root_password
    if root != "locked":
        yield from _hash(root, ("hardening", "root_password"), "'locked' or ")


def _user(user: User, here: Location) -> Iterator[Flaw]:
    if not re.fullmatch(r"/[!-9;-~]+", user.shell):
        yield Flaw((*here, "shell"), f"{user.shell!r} is not the absolute path of a program")
    if user.password_hash is not None:
        yield from _hash(user.password_hash, (*here, "password_hash"), "")
    for index, line in enumerate(user.authorized_keys):
        yield from _key(line, (*here, "authorized_keys", index))


def _hash(value: str, here: Location, before: str) -> Iterator[Flaw]:
    if _WEAK_HASH.match(value):
        yield Flaw(here, "is a hash of a method that is broken", _MAKE_HASH)
    elif not _HASH.fullmatch(value):
        what = f"is not {before}a crypt(5) hash (a password does not belong here)"
        yield Flaw(here, what, _MAKE_HASH)


def _key(line: str, here: Location) -> Iterator[Flaw]:
    if "PRIVATE KEY" in line:
        yield Flaw(here, "is a private key", "give the public one, the file that ends in .pub")
        return
    if not line.isprintable():
        yield Flaw(here, "must be one line", "one entry for each key")
        return
    match = _KEY.search(line)
    if match is None:
        yield Flaw(here, "is not an SSH public key", "such as 'ssh-ed25519 AAAA... me@example'")
    elif not _KEY_TYPES.fullmatch(match[1]):
        what = f"'{match[1]}' keys are not accepted by sshd"
        yield Flaw(here, what, "`ssh-keygen -t ed25519` makes one that is")
    elif not _holds(match[2], match[1]):
        yield Flaw(here, "is a damaged SSH public key", "was it copied whole?")


def _holds(blob: str, kind: str) -> bool:
    """Is `blob` a whole base64 key of this kind? It starts with its own type: RFC 4253, 6.6."""
    try:
        data = base64.b64decode(blob, validate=True)
    except binascii.Error:
        return False
    parts = []
    while data:
        length = int.from_bytes(data[:4])
        if len(data) < 4 + length:
            return False
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return len(parts) > 1 and parts[0] == kind.encode()
