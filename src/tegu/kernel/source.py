"""The source of a recipe: which files, with which checksums, and where they may come from.

`NAME.lock` beside `NAME.toml` fixes the files of the source package, so that a version which the
suite has replaced can still be built wherever a mirror, an archive or the store has them. Without
a lock the distribution's signed index is asked.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.definition import load, shipped_definition
from tegu.errors import FetchError, LockError, VerifyError
from tegu.files import write_atomic
from tegu.kernel.recipe import Recipe
from tegu.packages import SourcePackage, find_source
from tegu.packages.source_package import mirrors_of, parse_stanza

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["lock_source", "source_of"]

_HEAD = """\
# The files of the source package that {recipe} builds, by their SHA-256. Written by
# `tegu kernel lock` from the distribution's signed index; renew it when the version changes.
"""


def source_of(
    recipe: Recipe, store: Store, *, offline: bool = False, mirrors: Sequence[str] = ()
) -> SourcePackage:
    """Return the source package of `recipe`, from its lock, else from the signed index.

    `mirrors` are URIs of repositories to try before those of the distribution. Raises LockError
    for a lock that is damaged or of another version, FetchError when there is no such package.
    """
    locked = _read(recipe)
    if locked is None:
        found = find_source(
            load(shipped_definition()),
            recipe.package,
            store,
            version=recipe.version,
            offline=offline,
        )
        return replace(found, mirrors=(*mirrors, *found.mirrors))
    if offline or all(store.blob(f.sha256) is not None for f in locked.files):
        return locked
    try:
        known = mirrors_of(load(shipped_definition()))
    except FetchError:
        if not mirrors:
            raise
        known = ()
    return replace(locked, mirrors=(*mirrors, *known))


def lock_source(recipe: Recipe, store: Store, *, offline: bool = False) -> SourcePackage:
    """Find the source of `recipe` in the signed index and write its lock; returns the package."""
    package = find_source(
        load(shipped_definition()), recipe.package, store, version=recipe.version, offline=offline
    )
    lines = [
        _HEAD.format(recipe=recipe.path.name),
        f'package = "{package.name}"\n',
        f'version = "{package.version}"\n',
        f'directory = "{package.directory}"\n',
    ]
    lines += [
        f'\n[[file]]\nname = "{f.name}"\nsize = {f.size}\nsha256 = "{f.sha256}"\n'
        for f in package.files
    ]
    write_atomic(recipe.lock, "".join(lines))
    return package


def _read(recipe: Recipe) -> SourcePackage | None:
    path = recipe.lock
    if not path.exists():
        return None
    renew = f"make it again with `tegu kernel lock{_option(recipe.path)}`"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        # Held against the same rules as an entry of an index.
        package = parse_stanza(
            f"Package: {raw['package']}\nVersion: {raw['version']}\n"
            f"Directory: {raw['directory']}\nChecksums-Sha256:\n"
            + "".join(f" {f['sha256']} {f['size']} {f['name']}\n" for f in raw["file"])
        )
    except OSError as e:
        raise LockError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, VerifyError) as e:
        raise LockError(f"{path}: not a lock of a kernel's source: {e}", hint=renew) from e
    if (package.name, package.version) != (recipe.package, recipe.version):
        raise LockError(
            f"{path} is of {package.name} {package.version}, the recipe builds "
            f"{recipe.package} {recipe.version}",
            hint=renew,
        )
    return package


def _option(path: Path) -> str:
    from tegu.kernel.recipe import default_recipe

    return "" if path == default_recipe() else f" --recipe {path}"
