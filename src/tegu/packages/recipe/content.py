"""What goes into a package: files, relations, scripts, from the recipe and what it draws on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tegu.errors import RecipeError
from tegu.packages.deb_write import DebEntry
from tegu.packages.recipe.model import LaidFile, Recipe

if TYPE_CHECKING:
    from tegu.definition import Definition

__all__ = ["Format", "Payload", "payload"]

Format = Literal["deb", "rpm"]
RELATIONS = ("depends", "recommends", "conflicts", "replaces", "provides")


@dataclass(frozen=True, slots=True)
class Payload:
    """What one package holds: entries, relations by name, control scripts that came with it."""

    entries: tuple[DebEntry, ...]
    relations: Mapping[str, tuple[str, ...]]
    conffiles: tuple[str, ...]
    scripts: Mapping[str, str] = field(default_factory=dict)


def payload(
    recipe: Recipe,
    path: Path,
    kind: Format,
    built: tuple[DebEntry, ...],
    *,
    version: str,
    timestamp: int,
) -> Payload:
    """Return what the package of `recipe` (read from `path`) holds in the format `kind`.

    `built` came out of the recipe's steps. Raises RecipeError.
    """
    relations = {name: tuple(getattr(getattr(recipe, name), kind)) for name in RELATIONS}
    entries = [*built, *(_laid(f, path) for f in recipe.file if kind in f.formats)]
    scripts: Mapping[str, str] = {}
    content = recipe.content
    if content.host_half:
        from tegu.packages.tegu_deb import host_parts

        parts = host_parts(timestamp, system_python=kind == "deb")
        entries += parts.entries
        scripts = parts.scripts
        if kind == "deb":
            for name, field_name in (("depends", "Depends"), ("conflicts", "Conflicts"),
                                     ("provides", "Provides")):  # fmt: skip
                told = parts.control.get(field_name, "")
                words = tuple(w.strip() for w in told.split(",") if w.strip())
                relations[name] = (*words, *relations[name])
    if content.definition is not None:
        definition = _definition(recipe, path)
        entries += _from_definition(recipe, definition, version, timestamp)
        if content.meta:
            if kind == "rpm":
                raise RecipeError(
                    f"{path}: content.meta: the definition names Debian packages",
                    hint='formats = ["deb"]',
                )
            named = sorted(set(definition.packages.install))
            relations["depends"] = (*relations["depends"], *named)
    paths = [e.path for e in entries]
    for twice in {p for p in paths if paths.count(p) > 1}:
        kinds = [e for e in entries if e.path == twice]
        if any(e.content is not None or e.target is not None for e in kinds):
            raise RecipeError(f"{path}: {twice} is in the package twice")
    unique = {e.path: e for e in entries}
    conffiles = tuple(
        sorted(p for p, e in unique.items() if p.startswith("/etc/") and e.content is not None)
    )
    for unit in recipe.units:
        if f"/usr/lib/systemd/system/{unit}" not in unique:
            raise RecipeError(f"{path}: units: {unit} is not in the package")
    return Payload(tuple(unique.values()), relations, conffiles, scripts)


def _laid(file: LaidFile, recipe: Path) -> DebEntry:
    mode = int(file.mode, 8) if file.mode else None
    if file.symlink is not None:
        return DebEntry(file.path, target=file.symlink)
    if file.directory:
        return DebEntry(file.path, mode=mode or 0o755)
    if file.content is not None:
        return DebEntry(file.path, file.content.encode(), mode=mode or 0o644)
    assert file.source is not None
    source = recipe.parent / file.source
    try:
        data = source.read_bytes()
        executable = source.stat().st_mode & 0o100
    except OSError as e:
        raise RecipeError(f"{recipe}: file {file.path}: {source}: {e.strerror}") from e
    return DebEntry(file.path, data, mode=mode or (0o755 if executable else 0o644))


def _definition(recipe: Recipe, path: Path) -> Definition:
    from tegu.definition import load

    assert recipe.content.definition is not None
    return load(path.parent / recipe.content.definition, profile=recipe.content.profile)


def _from_definition(
    recipe: Recipe, definition: Definition, version: str, timestamp: int
) -> Iterator[DebEntry]:
    from tegu.definition import os_release

    if recipe.content.os_release is not None:
        suite = definition.base.suites[0].partition("-")[0]
        system = definition.system
        # The package may be of a later release than the definition it is made with says.
        pretty = system.pretty_name.replace(system.version, version)
        system = system.model_copy(update={"version": version, "pretty_name": pretty})
        text = os_release(system, codename=suite, day=timestamp // 86400)
        yield DebEntry(recipe.content.os_release, text.encode())
    if recipe.content.sysctl is not None:
        lines = (f"{name} = {value}\n" for name, value in sorted(definition.sysctl.items()))
        yield DebEntry(recipe.content.sysctl, "".join(lines).encode())
