"""What is saved after a crash, and where: /etc/tegu/kdump.toml.

    target = "/var/crash"        # or ssh://user@host/path, or https://... (a presigned PUT)
    level = 31                   # makedumpfile's dump level: 31 leaves out all that can be left out
    compression = "zstd"         # zstd, zlib, lzo, snappy or none
    keep = 4                     # dumps that stay; the oldest goes first
    max_size = "8G"              # of all dumps together
    after = "reboot"             # reboot, poweroff or halt
    timeout = 1800               # seconds for the capture, whatever happens
    log_url = "https://..."      # with a presigned target: where the log goes
    ssh_key = "/root/.ssh/id_ed25519"
    ssh_known_hosts = "/root/.ssh/known_hosts"

Every key may be left out.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tegu.errors import DefinitionError

__all__ = ["CONFIG", "Settings", "Target", "load_settings", "parse_target"]

CONFIG = Path("/etc/tegu/kdump.toml")

_COMPRESSIONS = ("zstd", "zlib", "lzo", "snappy", "none")
_AFTER = ("reboot", "poweroff", "halt")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# These words are given to the capture's shell in single quotes.
_PLAIN = re.compile(r"[^'\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a dump goes. `path` is a directory for "local" and "ssh", a whole URL for "http"."""

    kind: Literal["local", "ssh", "http"]
    path: str
    user: str = ""
    host: str = ""
    port: int = 22

    def __str__(self) -> str:
        if self.kind == "ssh":
            port = f":{self.port}" if self.port != 22 else ""
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"ssh://{self.user}@{host}{port}{self.path}"
        if self.kind == "http":
            # What follows the question mark is a credential.
            return self.path.partition("?")[0]
        return self.path


@dataclass(frozen=True, slots=True)
class Settings:
    """The keys of kdump.toml with their defaults; `max_size` in bytes, `timeout` in seconds."""

    target: Target = Target("local", "/var/crash")
    level: int = 31
    compression: str = "zstd"
    keep: int = 4
    max_size: int = 8 << 30
    after: str = "reboot"
    timeout: int = 1800
    log_url: str = ""
    ssh_key: str = "/root/.ssh/id_ed25519"
    ssh_known_hosts: str = "/root/.ssh/known_hosts"


def parse_target(text: str) -> Target:
    """Read a target as the settings write it; raises DefinitionError."""
    if not _PLAIN.fullmatch(text):
        raise DefinitionError("target: empty, or with quotes or control characters in it")
    if text.startswith("/"):
        return Target("local", str(Path(text)))
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as e:
        raise DefinitionError(f"target: {e}") from e
    if url.scheme in ("http", "https") and url.hostname:
        return Target("http", text, host=url.hostname, port=port or 0)
    if url.scheme == "ssh" and url.hostname:
        if not url.path.strip("/"):
            raise DefinitionError("target: ssh://user@host needs a path after the host")
        if url.hostname.startswith("-") or (url.username or "").startswith("-"):
            raise DefinitionError("target: neither user nor host may begin with a dash")
        return Target("ssh", url.path, url.username or "root", url.hostname, port or 22)
    raise DefinitionError(
        f"target: {text!r} is neither an absolute path nor ssh://user@host/path nor https://..."
    )


def parse_size(text: str) -> int:
    """Return the bytes that `8G` or `512M` means; raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,12}) ?([KMGT]?)(?:iB|B)?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512M or 8G")
    return int(match[1]) * _UNITS[match[2]]


def load_settings(path: Path = CONFIG) -> Settings:
    """Read the settings; a file that is not there means the defaults.

    Raises DefinitionError, naming file and key, for what is wrong.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Settings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise DefinitionError(f"{path}: {e}") from e
    except OSError as e:
        raise DefinitionError(f"cannot read {path}: {e.strerror}") from e
    known = {f.name for f in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise DefinitionError(f"{path}: {key}: there is no such key")
        try:
            values[key] = _value(key, value)
        except ValueError as e:
            raise DefinitionError(f"{path}: {key}: {e}") from e
        except DefinitionError as e:
            raise DefinitionError(f"{path}: {e.message}") from e
    settings = Settings(**values)
    one_object = settings.target.kind == "http" and not settings.target.path.endswith("/")
    if one_object and not settings.log_url:
        raise DefinitionError(
            f"{path}: log_url is missing: a presigned URL holds one object, and there are two",
            hint="or end target with / where objects may be put under any name",
        )
    return settings


_RANGES = {"level": (0, 31), "keep": (1, 1000), "timeout": (30, 86400)}


def _value(key: str, value: object) -> object:
    if key in _RANGES:
        low, high = _RANGES[key]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if key == "target":
        return parse_target(value)
    if key == "max_size":
        size = parse_size(value)
        if size < 16 << 20:
            raise ValueError("must be at least 16M")
        return size
    if key == "log_url":
        if parse_target(value).kind != "http":
            raise ValueError("must begin with https:// or http://")
        return value
    choices = {"compression": _COMPRESSIONS, "after": _AFTER}.get(key)
    if choices is not None and value not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    if choices is None and not (value.startswith("/") and _PLAIN.fullmatch(value)):
        raise ValueError("must be an absolute path")
    return value
