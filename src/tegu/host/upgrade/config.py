"""/etc/tegu/upgrade.toml: what is carried when a root is gone back from, where slots come from."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UpgradeError

__all__ = ["CONFIG", "Config", "read_config"]

CONFIG = Path("/etc/tegu/upgrade.toml")
_KEYS = ("data", "source", "keyring")


@dataclass(frozen=True, slots=True)
class Config:
    """`data` are directories that come along; `source` is a directory or URL of a slot image, in
    which `{release}` stands for what --to says; `keyring` has the keys that sign slot images."""

    data: tuple[str, ...] = ()
    source: str | None = None
    keyring: Path | None = None


def read_config(config: Path = CONFIG) -> Config:
    """Read it; all is at its default when it is not there. UpgradeError when it is wrong."""
    try:
        raw = tomllib.loads(config.read_text())
    except FileNotFoundError:
        return Config()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UpgradeError(f"{config}: {e}") from e
    unknown = sorted(set(raw) - set(_KEYS))
    if unknown:
        raise UpgradeError(
            f"{config}: there is no key {unknown[0]}", hint=f"there are: {', '.join(_KEYS)}"
        )
    named = raw.get("data", [])
    if not isinstance(named, list) or not all(isinstance(p, str) for p in named):
        raise UpgradeError(f"{config}: data: a list of directories is needed")
    for key in ("source", "keyring"):
        if not isinstance(raw.get(key, ""), str):
            raise UpgradeError(f"{config}: {key}: a string is needed")
    keyring = raw.get("keyring")
    return Config(tuple(named), raw.get("source"), None if keyring is None else Path(keyring))
