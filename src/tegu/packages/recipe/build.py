"""From a recipe to its packages."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tegu
from tegu.errors import BuildError, RecipeError
from tegu.files import atomic_copy
from tegu.packages.deb_write import DebEntry
from tegu.packages.recipe.content import Format, payload
from tegu.packages.recipe.formats import full_version, to_deb, to_rpm
from tegu.packages.recipe.load import load_recipe
from tegu.packages.recipe.model import Recipe
from tegu.packages.recipe.sources import unpack_source
from tegu.packages.recipe.steps import collect, run_steps
from tegu.packages.tegu_deb import release_time
from tegu.store import Store

__all__ = ["BuiltPackage", "build_packages"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuiltPackage:
    """A package that was written: `size` in bytes; `source` says what it was made of."""

    path: Path
    name: str
    version: str
    kind: Format
    size: int
    sha256: str
    source: str


def build_packages(
    recipe_path: Path,
    out: Path,
    store: Store,
    *,
    version: str | None = None,
    formats: Sequence[Format] | None = None,
    values: Mapping[str, str] | None = None,
    twice: bool = False,
    say: Say = lambda _: None,
) -> list[BuiltPackage]:
    """Build the packages of the recipe at `recipe_path` into the directory `out`.

    `version` takes the place of the recipe's. All formats of the recipe are built, or those of
    `formats`. With `twice` each is built a second time from the start, and BuildError raised when
    one byte differs. Nothing is written unless all succeed. Raises RecipeError, FetchError,
    VerifyError, BuildError, UnsupportedError.
    """
    recipe = load_recipe(recipe_path, values)
    wanted = list(formats or recipe.formats)
    for kind in wanted:
        if kind not in recipe.formats:
            raise RecipeError(f"{recipe_path}: it is for {', '.join(recipe.formats)} only")
    number = version or (tegu.__version__ if recipe.version == "tegu" else recipe.version)
    if not number[:1].isdigit() or any(c in number for c in "-_/ \n"):
        raise RecipeError(f"{recipe_path}: {number!r} is no version")
    with tempfile.TemporaryDirectory(prefix="tegu-pkg-", dir=store.root / "tmp") as scratch:
        rounds = []
        for turn in range(2 if twice else 1):
            say(f"building {recipe.name} {number}" + (" again" if turn else ""))
            place = Path(scratch) / str(turn)
            place.mkdir()
            rounds.append(_once(recipe, recipe_path, number, wanted, place, store))
        if twice:
            _same(rounds[0][1], rounds[1][1])
        source, written = rounds[0]
        found = []
        for kind, path in zip(wanted, written, strict=True):
            data = path.read_bytes()
            found.append(
                BuiltPackage(
                    atomic_copy(path, out / path.name),
                    recipe.name,
                    full_version(recipe, number),
                    kind,
                    len(data),
                    hashlib.sha256(data).hexdigest(),
                    source,
                )
            )
        return found


def _once(
    recipe: Recipe, path: Path, version: str, formats: Sequence[Format], scratch: Path, store: Store
) -> tuple[str, list[Path]]:
    timestamp = release_time()
    built: tuple[DebEntry, ...] = ()
    source = "the recipe"
    if recipe.source is not None:
        source = unpack_source(recipe.source, path, scratch / "source", store)
        (scratch / "dest").mkdir()
        run_steps(
            recipe.build.steps,
            recipe.build.needs,
            scratch / "source",
            scratch / "dest",
            timestamp=timestamp,
        )
        built = tuple(collect(scratch / "dest"))
    written = []
    for kind in formats:
        held = payload(recipe, path, kind, built, version=version, timestamp=timestamp)
        write = to_deb if kind == "deb" else to_rpm
        written.append(write(recipe, version, held, scratch, timestamp=timestamp))
    return source, written


def _same(first: Sequence[Path], second: Sequence[Path]) -> None:
    for one, other in zip(first, second, strict=True):
        if one.read_bytes() != other.read_bytes():
            raise BuildError(
                f"{one.name}: built twice, and the bytes differ: {_difference(one, other)}",
                hint="look for times, paths, the order of directories or random names in a step",
            )


def _difference(one: Path, other: Path) -> str:
    if one.suffix != ".deb":
        return f"{os.path.getsize(one)} and {os.path.getsize(other)} bytes"  # noqa: PTH202
    from tegu.packages import open_deb

    members = []
    for path in (one, other):
        with open_deb(path) as deb:
            members.append(
                {info.name: content.read() if content else b"" for info, content in deb.data()}
            )
    names = sorted(
        n for n in members[0].keys() | members[1].keys() if members[0].get(n) != members[1].get(n)
    )
    return ", ".join(names[:3]) or "its control files"
