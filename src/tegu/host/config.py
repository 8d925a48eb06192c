"""How this machine makes its boot files: /etc/tegu/boot.toml and /etc/kernel/cmdline."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from types import GenericAlias
from typing import Any

from tegu.boot.slots import PLACES
from tegu.errors import DefinitionError, UnsupportedError

__all__ = ["BootConfig", "load_config"]

CONFIG = "etc/tegu/boot.toml"
CMDLINE = "etc/kernel/cmdline"


@dataclass(frozen=True, slots=True)
class BootConfig:
    """The keys of boot.toml, and the kernel command line.

    `name` begins the files' names on the ESP, `esp` is its partition's UUID, `keep` how many
    kernels stay there. The others are those of the definition that the machine was built from.
    """

    name: str
    architecture: str
    firmware: tuple[str, ...]
    filesystem: str
    initrd: str
    modules: tuple[str, ...]
    esp: str
    keep: int
    cmdline: str


def load_config(root: Path = Path("/")) -> BootConfig:
    """Read the configuration of the machine at `root`.

    Raises UnsupportedError when the machine has none (it was not built as a disk), DefinitionError
    when it is wrong.
    """
    path = root / CONFIG
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UnsupportedError(
            f"this machine has no /{CONFIG}",
            hint="kernels come with its slots: tegu upgrade"
            if (root / PLACES).exists()
            else "its boot files are not made by tegu",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise DefinitionError(f"{path}: {e}") from e
    except OSError as e:
        raise DefinitionError(f"cannot read {path}: {e.strerror}") from e
    try:
        cmdline = (root / CMDLINE).read_text().strip()
    except OSError as e:
        raise DefinitionError(f"cannot read {root / CMDLINE}: {e.strerror}") from e
    values: dict[str, Any] = {"cmdline": " ".join(cmdline.split())}
    for field in fields(BootConfig):
        if field.name != "cmdline":
            values[field.name] = _value(path, raw, field.name, _KINDS[field.name])
    unknown = sorted(set(raw) - set(values))
    if unknown:
        raise DefinitionError(f"{path}: {unknown[0]}: there is no such key")
    if values["keep"] < 1:
        raise DefinitionError(f"{path}: keep: at least one kernel must stay")
    return BootConfig(**values)


_KINDS: dict[str, type | GenericAlias] = {
    "name": str,
    "architecture": str,
    "firmware": tuple[str, ...],
    "filesystem": str,
    "initrd": str,
    "modules": tuple[str, ...],
    "esp": str,
    "keep": int,
}


def _value(path: Path, raw: dict[str, Any], key: str, kind: type | GenericAlias) -> Any:
    if key not in raw:
        raise DefinitionError(f"{path}: {key} is missing")
    value = raw[key]
    if isinstance(kind, GenericAlias):
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise DefinitionError(f"{path}: {key}: must be a list of strings")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DefinitionError(f"{path}: {key}: must be a {kind.__name__}")
    return value
