"""`tegu pkg`: packages from recipes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli.output import human_size, print_json, print_table, spinner

if TYPE_CHECKING:
    from tegu.packages.recipe.content import Format

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Build packages from recipes.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Value of a variable of the recipe."),
]


@app.command(epilog="Example: tegu pkg build tegu tegu-tune -o out --twice")
def build(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files, or names of shipped ones.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory to write the packages to.")
    ] = Path("out"),
    version: Annotated[
        str | None, typer.Option("--version", help="Instead of the recipe's own.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--format", help="deb or rpm [what the recipe says].")
    ] = None,
    values: Values = None,
    twice: Annotated[
        bool, typer.Option("--twice", help="Build twice, and fail when one byte differs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the .deb and .rpm of recipes, without root: the same bytes each time."""
    from tegu.packages.recipe import build_packages
    from tegu.packages.recipe.load import find_recipe
    from tegu.store import Store

    given = pairs(values)
    formats = _formats(kind)
    found = []
    with spinner() as say:
        for recipe in recipes:
            found += build_packages(
                find_recipe(recipe),
                output,
                Store.default(),
                version=version,
                formats=formats,
                values=given,
                twice=twice,
                say=say,
            )
    if as_json:
        print_json([asdict(p) for p in found])
        return
    print_table(
        ["package", "version", "kind", "size", "file"],
        [(p.name, p.version, p.kind, human_size(p.size), p.path) for p in found],
    )


@app.command("ls", epilog="Example: tegu pkg ls")
def list_(as_json: Json = False) -> None:
    """List the recipes that this program ships."""
    from tegu.packages.recipe import list_recipes
    from tegu.packages.recipe.load import outline

    rows = [outline(path) for path in list_recipes()]
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ["recipe", "formats", "variables", "summary"],
        [(r.name, " ".join(r.formats), " ".join(r.variables), r.summary) for r in rows],
    )


def pairs(values: list[str] | None) -> dict[str, str]:
    """Return `NAME=VALUE` words as a dictionary; raises UsageError."""
    from tegu.errors import UsageError

    found = {}
    for word in values or []:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {word}: NAME=VALUE is needed")
        found[name] = value
    return found


def _formats(kinds: list[str] | None) -> list[Format] | None:
    from tegu.errors import UsageError

    if not kinds:
        return None
    found: list[Format] = []
    for kind in kinds:
        if kind not in ("deb", "rpm"):
            raise UsageError(f"--format {kind}: there are deb and rpm")
        found.append("deb" if kind == "deb" else "rpm")
    return found
