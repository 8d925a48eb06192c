"""The cloud kernel: built from the distribution's source, and kept current.

`load_recipe` reads what the kernel is made of (`distro/kernel/kernel.toml`: source package, patch
queue, configuration fragments), `build_kernel` makes packages of it, `check_config` compares the
fragments with what came of them. `History` indexes a kernel's git tree so that fixes which it
lacks can be found (`missing_fixes`), picked and asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tegu.kernel.build import Built, build_kernel
    from tegu.kernel.recipe import Recipe, load_recipe

__all__ = ["Built", "Recipe", "build_kernel", "load_recipe"]

_HOMES = {
    "Built": "tegu.kernel.build",
    "Recipe": "tegu.kernel.recipe",
    "build_kernel": "tegu.kernel.build",
    "load_recipe": "tegu.kernel.recipe",
}


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
