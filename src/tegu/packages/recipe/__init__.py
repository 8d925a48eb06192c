"""Packages from recipes: one TOML file gives a .deb and an .rpm, the same bytes each time.

`load_recipe` reads a recipe (`distro/packages/NAME.toml` is where ours are), `build_packages`
fetches and verifies its source, runs its steps in a sandbox without network, and writes the
packages. No root is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tegu.lazy import lazily

if TYPE_CHECKING:
    from tegu.packages.recipe.build import BuiltPackage, build_packages
    from tegu.packages.recipe.load import list_recipes, load_recipe
    from tegu.packages.recipe.model import Recipe

__all__ = ["BuiltPackage", "Recipe", "build_packages", "list_recipes", "load_recipe"]

__getattr__ = lazily(
    __name__,
    {
        "BuiltPackage": "build",
        "Recipe": "model",
        "build_packages": "build",
        "list_recipes": "load",
        "load_recipe": "load",
    },
)
