"""`repo.toml`: what a repository is called, its channels, who signs it, how long indexes hold."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import RepositoryError

__all__ = ["COMPONENT", "SNAPSHOT_COMPONENT", "Settings", "check_name", "load_settings", "template"]

COMPONENT = "main"
SNAPSHOT_COMPONENT = "snapshot"
"""Snapshots hold for ever, and apt only warns about an index of another suite: with a component of
their own they cannot be put in the place of a channel to hold clients back."""
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,62}")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a repository.

    `signers` are private key files (relative to the repository), or `agent:FINGERPRINT` for a key
    that gpg-agent holds. `valid_days` is how long a published index holds (Valid-Until),
    `keep_hours` how long indexes and packages that were replaced stay for clients that are reading.
    """

    name: str
    description: str
    channels: tuple[str, ...]
    architectures: tuple[str, ...]
    signers: tuple[str, ...]
    valid_days: float
    keep_hours: float


def check_name(name: str, what: str) -> str:
    """Return `name` when it may be a directory of a URL; raises RepositoryError."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise RepositoryError(
            f"{name!r} is no name for a {what}",
            hint="lower case letters, digits, '.', '+' and '-', beginning with a letter or digit",
        )
    return name


def load_settings(path: Path) -> Settings:
    """Read `path`; raises RepositoryError that names the file and the key."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as e:
        raise RepositoryError(
            f"{path.parent} is no repository: it has no {path.name}",
            hint="make one with `tegu repo init`, or name one with --repo",
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise RepositoryError(f"{path}: {e}") from e
    reader = _Reader(path, data)
    settings = Settings(
        name=reader.text("name"),
        description=reader.text("description", ""),
        channels=reader.texts("channels"),
        architectures=reader.texts("architectures"),
        signers=reader.texts("signers"),
        valid_days=reader.number("valid_days", 14),
        keep_hours=reader.number("keep_hours", 24),
    )
    for channel in settings.channels:
        check_name(channel, "channel")
    for architecture in settings.architectures:
        if not _ARCHITECTURE.fullmatch(architecture):
            raise RepositoryError(f"{path}: architectures: {architecture!r} is none")
    if not settings.signers:
        raise RepositoryError(f"{path}: signers: an index needs at least one")
    if unknown := sorted(set(data) - set(Settings.__dataclass_fields__)):
        raise RepositoryError(
            f"{path}: unknown key {unknown[0]}",
            hint=f"there are: {', '.join(Settings.__dataclass_fields__)}",
        )
    return settings


class _Reader:
    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data

    def text(self, key: str, default: str | None = None) -> str:
        value = self.data.get(key, default)
        if not isinstance(value, str) or "\n" in value or (default is None and not value.strip()):
            raise RepositoryError(f"{self.path}: {key}: one line of text is needed")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.data.get(key)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise RepositoryError(f"{self.path}: {key}: a list of texts is needed")
        if len(set(value)) != len(value):
            raise RepositoryError(f"{self.path}: {key}: something is there twice")
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise RepositoryError(f"{self.path}: {key}: a number above zero is needed")
        return float(value)


def template(
    name: str, channels: tuple[str, ...], architectures: tuple[str, ...], signers: tuple[str, ...]
) -> str:
    """Return the text of a new `repo.toml`."""
    return f"""\
# A package repository (tegu repo). After a change: tegu repo publish.
name = {_quoted(name)}
description = ""
# From the first that gets a package to the one that users have; `tegu repo promote` goes along.
channels = {_list(channels)}
# Debian's names (amd64 is x86_64 to RPM). Packages of architecture `all`, `noarch` are in each.
architectures = {_list(architectures)}
# Private key files, or agent:FINGERPRINT for a key that gpg-agent holds. All of them sign.
signers = {_list(signers)}
# How long an index holds before it must be published again: replayed old ones end then.
valid_days = 14
# How long indexes and packages that were replaced stay, for clients that are reading them.
keep_hours = 24
"""


def _list(values: tuple[str, ...]) -> str:
    return f"[{', '.join(_quoted(v) for v in values)}]"


def _quoted(text: str) -> str:
    """Return `text` as a TOML basic string."""
    body = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or c in '"\\\x7f' else c  # TOML 1.0, "String"
        for c in text
    )
    return f'"{body}"'
