"""What a build depends on, as digests: the options, and the content of every file they name.

The digests do not depend on where the files are, so two checkouts of one definition agree. Options
left at their defaults do not enter, so a Tegu with new options agrees with an older one; what a
default means is a matter of the program, and a build keys its steps by that as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tegu.definition.models import Definition, File, Table
from tegu.definition.overlay import overlay_entries
from tegu.definition.problems import shown_path
from tegu.errors import DefinitionError

__all__ = ["digest", "section_digests"]

_FORMAT = "tegu-definition-1"  # changes when the same definition is to give another digest
_TREE_TABLES = ("apt", "units", "kernel", "sysctl", "cloud", "hardening", "trim")
# A keyring of the build machine may differ between machines that make the same image, and it
# decides what is trusted rather than what is made: it enters by name only.
_MACHINE = ("/usr/", "/etc/")


def digest(definition: Definition) -> str:
    """Return the SHA-256 (hex) of the whole definition; test plans are not part of it."""
    return _sha256(section_digests(definition))


def section_digests(definition: Definition) -> dict[str, str]:
    """Return the SHA-256 (hex) of each section of `definition`.

    `packages` decides the lock, `tree` what becomes of the packages, `image` the disk. Every file
    that is named is read; raises DefinitionError when one can not be.
    """
    return {
        "packages": _sha256(_packages(definition)),
        "tree": _sha256(_tree(definition)),
        "image": _sha256(_image(definition)),
    }


def _packages(definition: Definition) -> dict[str, Any]:
    packages = _dump(definition.packages)
    for key in ("install", "exclude"):
        packages[key] = sorted(packages.get(key, ()))
    packages["local"] = sorted(_file(path) for path in definition.packages.local)
    base = definition.base.model_dump(mode="json")  # whole: its defaults are what is installed
    base["keyring"] = _keyring(definition.base.keyring)
    repositories = []
    for repository in definition.repository:
        entry = _dump(repository, leave=("in_image",))
        entry["keyring"] = _keyring(repository.keyring)
        repositories.append(entry)
    return {
        "architecture": definition.system.architecture,
        "base": base,
        "kernel": definition.kernel.package,
        "packages": packages,
        "repository": sorted(repositories, key=lambda r: (r["uri"], r["suite"])),
    }


def _tree(definition: Definition) -> dict[str, Any]:
    tree: dict[str, Any] = {"system": definition.system.model_dump(mode="json")}
    for name in _TREE_TABLES:
        value = getattr(definition, name)
        tree[name] = _dump(value) if isinstance(value, Table) else dict(value)
    tree["file"] = [_laid_file(f) for f in sorted(definition.file, key=lambda f: f.path)]
    tree["overlay"] = [_overlay(path) for path in definition.overlay]
    tree["user"] = [_dump(user) for user in definition.user]
    if definition.apt.sources == "base":
        tree["base"] = definition.base.model_dump(mode="json")
        tree["base"]["keyring"] = _keyring(definition.base.keyring)
    in_image = [r for r in definition.repository if r.in_image]
    tree["repository"] = [_dump(r) | {"keyring": _keyring(r.keyring)} for r in in_image]
    return tree


def _image(definition: Definition) -> dict[str, Any]:
    system = definition.system
    image = _dump(definition.image, leave=("secure_boot_key", "secure_boot_certificate"))
    if definition.image.secure_boot_certificate is not None:
        # Which key it is follows from the certificate; where both are does not matter.
        image["secure_boot"] = _file(definition.image.secure_boot_certificate)
    return {
        "image": image,
        "system": [system.name, system.version, system.architecture],
    }


def _dump(table: Table, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    return table.model_dump(mode="json", exclude_defaults=True, exclude=set(leave))


def _laid_file(file: File) -> dict[str, Any]:
    entry = _dump(file, leave=("content", "source"))
    if file.content is not None:
        entry["sha256"] = hashlib.sha256(file.content.encode()).hexdigest()
    elif file.source is not None:
        entry["sha256"] = _file(file.source)
        if file.mode is None and _executable(file.source):
            entry["mode"] = "0755"
    return entry


def _overlay(directory: Path) -> list[list[object]]:
    found: list[list[object]] = []
    for entry in overlay_entries(directory):
        content = _file(entry.source) if entry.kind == "file" else entry.target
        found.append([_text(entry.path), entry.kind, entry.mode, _text(content)])
    return found


def _keyring(path: Path) -> str:
    return str(path) if str(path).startswith(_MACHINE) else _file(path)


def _executable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IXUSR)
    except OSError as e:
        raise DefinitionError(f"{shown_path(path)}: can not be read: {e.strerror}") from e


def _file(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise DefinitionError(f"{shown_path(path)}: can not be read: {e.strerror}") from e


def _text(value: str | None) -> str | None:
    """Names that are not UTF-8 reach us with surrogates, which JSON can not encode."""
    return None if value is None else os.fsencode(value).decode("latin-1")


def _sha256(value: Mapping[str, Any]) -> str:
    whole = {"format": _FORMAT, "value": value}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
