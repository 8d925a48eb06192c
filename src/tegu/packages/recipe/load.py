"""A recipe's file becomes a `Recipe`, or one line that names file, line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tegu.definition import shipped_directory
from tegu.errors import RecipeError
from tegu.packages.recipe.model import Recipe

__all__ = ["Outline", "find_recipe", "list_recipes", "load_recipe", "outline"]

_MAX_BYTES = 1 << 20
_VARIABLE = re.compile(r"\{\{ *([a-z][a-z0-9_]*) *\}\}")


def list_recipes(directory: Path | None = None) -> list[Path]:
    """Return the recipes in `directory` (default: those that this program ships)."""
    place = directory or shipped_directory() / "packages"
    return sorted(place.glob("*.toml"))


@dataclass(frozen=True, slots=True)
class Outline:
    """What a list shows of a recipe; `variables` are those that need a value."""

    name: str
    summary: str
    formats: tuple[str, ...]
    variables: tuple[str, ...]


def outline(path: Path) -> Outline:
    """Return what a list shows of the recipe at `path`; raises RecipeError."""
    raw = _read(path)[1].get("variable")
    needed = [
        str(k)
        for k, v in (raw.items() if isinstance(raw, dict) else ())
        if isinstance(v, dict) and "default" not in v
    ]
    recipe = load_recipe(path, dict.fromkeys(needed, "?"))
    return Outline(recipe.name, recipe.summary, tuple(recipe.formats), tuple(needed))


def find_recipe(name: str | Path) -> Path:
    """Return the path of a recipe: a file, or the name of one that this program ships."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_directory() / "packages" / f"{path.name}.toml"
    if "/" not in str(name) and shipped.is_file():
        return shipped
    known = ", ".join(p.stem for p in list_recipes())
    raise RecipeError(f"{path}: there is no such recipe", hint=f"a file, or one of: {known}")


def load_recipe(path: Path, values: Mapping[str, str] | None = None) -> Recipe:
    """Read the recipe at `path`; `values` are those of its variables.

    Raises RecipeError: the message is `file:line: key: what`.
    """
    text, raw = _read(path)
    known = _values(path, raw.get("variable"), values or {})
    try:
        return Recipe.model_validate(_filled(raw, known, path))
    except ValidationError as e:
        raise RecipeError(_problem(path, text, e)) from e


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES >> 20} MiB, so no recipe")
        text = data.decode("utf-8-sig")
        return text, tomllib.loads(text)
    except OSError as e:
        raise RecipeError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path}: is not UTF-8") from e
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise RecipeError(f"{path}: not valid TOML: {e}") from e


def _values(path: Path, declared: object, given: Mapping[str, str]) -> dict[str, str]:
    """Return the value of each variable; raises RecipeError for one that is odd or lacking."""
    names = declared if isinstance(declared, dict) else {}
    for name in given:
        if name not in names:
            known = ", ".join(sorted(map(str, names))) or "none"
            raise RecipeError(f"{path}: there is no variable {name}", hint=f"there are: {known}")
    found = {}
    for name, variable in names.items():
        default = variable.get("default") if isinstance(variable, dict) else None
        value = given.get(name, default)
        if value is None:
            about = variable.get("help", "") if isinstance(variable, dict) else ""
            raise RecipeError(
                f"{path}: the variable {name} has no value: {about}",
                hint=f"give one: --set {name}=VALUE",
            )
        found[str(name)] = str(value)
    return found


def _filled(value: Any, known: Mapping[str, str], path: Path) -> Any:
    if isinstance(value, dict):
        return {k: v if k == "variable" else _filled(v, known, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, known, path) for v in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise RecipeError(f"{path}: {match[0]}: no such variable is declared")
        return known[match[1]]

    return _VARIABLE.sub(one, value)


def _problem(path: Path, text: str, error: ValidationError) -> str:
    from tegu.definition.locate import locate

    first = error.errors(include_url=False)[0]
    where = tuple(p for p in first["loc"] if isinstance(p, int) or not p.startswith("function-"))
    lines = locate(text)
    at = where
    while at and at not in lines:
        at = at[:-1]
    line = f":{lines[at]}" if at else ""
    key = ".".join(str(p) for p in where)
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "there is no such key"
    elif first["type"] == "missing":
        what = "is missing"
    return f"{path}{line}: {key + ': ' if key else ''}{what[:1].lower()}{what[1:]}"
