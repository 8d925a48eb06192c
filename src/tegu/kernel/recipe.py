"""What our kernel is made of: `kernel.toml` with its fragments and its patch queue."""

from __future__ import annotations

import platform
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.definition import Architecture, shipped_directory
from tegu.errors import DefinitionError, UnsupportedError
from tegu.kernel.fragments import Option, merge, read_fragment
from tegu.kernel.patches import Patch, read_queue

__all__ = ["ARCHITECTURES", "ArchFacts", "Recipe", "default_recipe", "load_recipe"]


@dataclass(frozen=True, slots=True)
class ArchFacts:
    """One architecture: names of the kernel's own build, of dpkg, and of its compiler.

    `cross` is the prefix of compilers for it on other machines.
    """

    arch: str
    srcarch: str
    image: str
    target: str
    deb: str
    machine: str
    cross: str

    @property
    def prefix(self) -> str:
        """`cross`, or nothing where the build machine is of this architecture itself."""
        return "" if platform.machine() == self.machine else self.cross


# `make help` of the kernel, and dpkg-architecture(1).
ARCHITECTURES: dict[Architecture, ArchFacts] = {
    "x86-64": ArchFacts(
        *("x86_64", "x86", "arch/x86/boot/bzImage", "bzImage"),
        *("amd64", "x86_64", "x86_64-linux-gnu-"),
    ),
    "arm64": ArchFacts(
        *("arm64", "arm64", "arch/arm64/boot/Image", "Image"),
        *("arm64", "aarch64", "aarch64-linux-gnu-"),
    ),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A kernel to build: the source package, its name and revision, options and patches."""

    path: Path
    package: str
    version: str
    name: str
    revision: int
    architecture: Architecture
    options: dict[str, Option]
    patches: tuple[Patch, ...]

    @property
    def upstream(self) -> str:
        """The upstream version as the kernel itself says it: "6.12.107" of "6.12.107-1".

        Its makefile always has three numbers, so "6.13~rc7-1~exp1" is 6.13.0-rc7.
        """
        text = self.version.rpartition(":")[2].rpartition("-")[0]
        match = _UPSTREAM.fullmatch(text)
        if match is None:
            return text
        candidate = f"-{match[3]}" if match[3] else ""
        return f"{match[1]}{match[2] or '.0'}{candidate}"

    @property
    def release(self) -> str:
        """What `uname -r` will say."""
        return f"{self.upstream}-{self.name}"

    @property
    def deb_version(self) -> str:
        """The version of our packages; a new revision of either side is newer for dpkg."""
        return f"{self.version}+{self.name}{self.revision}"

    @property
    def lock(self) -> Path:
        """Where the checksums of the source are, beside the recipe."""
        return self.path.with_suffix(".lock")

    @property
    def facts(self) -> ArchFacts:
        return ARCHITECTURES[self.architecture]


def default_recipe() -> Path:
    """Return the recipe that this program ships."""
    return shipped_directory() / "kernel" / "kernel.toml"


# deb-version(7), Debian Policy 5.6.1; what the kernel appends to its own version.
_VERSION = re.compile(r"(?:\d+:)?\d[A-Za-z0-9.+~-]*-[A-Za-z0-9.+~]+")
_UPSTREAM = re.compile(r"(\d+\.\d+)(\.\d+)?(?:~(rc\d+))?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,31}")
_KEYS = {"source": {"package", "version"}, "kernel": {"name", "revision"}}


def load_recipe(path: Path | None = None, *, architecture: Architecture = "x86-64") -> Recipe:
    """Read the recipe at `path` (our own without), with all the files it names.

    Raises DefinitionError for what is wrong, UnsupportedError for an architecture that it has no
    fragments for.
    """
    # Programs that run in the tree are given its files by name.
    path = (path or default_recipe()).absolute()
    raw = _read(path)
    for table, keys in _KEYS.items():
        for key in sorted(keys):
            if key not in _table(raw, table, path):
                raise DefinitionError(f"{path}: {table}.{key} is missing")
        unknown = sorted(set(raw[table]) - keys)
        if unknown:
            raise DefinitionError(f"{path}: {table}.{unknown[0]}: there is no such key")
    unknown = sorted(set(raw) - {*_KEYS, "fragments"})
    if unknown:
        raise DefinitionError(f"{path}: {unknown[0]}: there is no such key")
    fragments = _table(raw, "fragments", path)
    if architecture not in fragments or architecture not in ARCHITECTURES:
        known = ", ".join(sorted(a for a in fragments if a in ARCHITECTURES))
        raise UnsupportedError(f"{path.name} has no fragments for {architecture} (it has {known})")
    names = fragments[architecture]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DefinitionError(f"{path}: fragments.{architecture}: must be a list of strings")
    revision = raw["kernel"]["revision"]
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 1:
        raise DefinitionError(f"{path}: kernel.revision: must be a number from 1")
    for table, key in (("source", "package"), ("source", "version"), ("kernel", "name")):
        if not isinstance(raw[table][key], str) or not raw[table][key]:
            raise DefinitionError(f"{path}: {table}.{key}: must be a string")
    if "-" not in raw["source"]["version"]:
        raise DefinitionError(
            f"{path}: source.version: {raw['source']['version']!r} has no Debian revision",
            hint="write it as the distribution does: 6.12.107-1",
        )
    for (table, key), (pattern, example) in _FORMS.items():
        value = raw[table][key]
        if not pattern.fullmatch(value):
            raise DefinitionError(
                f"{path}: {table}.{key}: {value!r} is none", hint=f"write it like {example}"
            )
    return Recipe(
        path=path,
        package=raw["source"]["package"],
        version=raw["source"]["version"],
        name=raw["kernel"]["name"],
        revision=revision,
        architecture=architecture,
        options=merge(read_fragment(path.parent / "config" / f"{n}.config") for n in names),
        patches=tuple(read_queue(path.parent / "patches")),
    )


_FORMS = {
    ("source", "package"): (_PACKAGE, "linux"),
    ("source", "version"): (_VERSION, "6.12.107-1"),
    ("kernel", "name"): (_NAME, "tegu"),
}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise DefinitionError(f"cannot read {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise DefinitionError(f"{path}: {e}") from e


def _table(raw: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = raw.get(name)
    if not isinstance(table, dict):
        raise DefinitionError(f"{path}: the table [{name}] is missing")
    return table
