"""Tegu Linux's own definition, which every installation of this program carries.

It is the directory `distro/` of the source tree; in a wheel it is `tegu/distro`. In definitions,
`tegu:PROFILE` includes it with that profile, and `tegu:PATH` is a file of it.
"""

from __future__ import annotations

from pathlib import Path

import tegu
from tegu.errors import DefinitionError

__all__ = ["PREFIX", "shipped_definition", "shipped_directory"]

PREFIX = "tegu:"


def shipped_directory() -> Path:
    """Return the directory of Tegu Linux's own definition; raises DefinitionError when missing."""
    package = Path(tegu.__file__).resolve().parent
    source = package.parents[1]
    candidates = [package / "distro"]
    if (source / "pyproject.toml").is_file():
        candidates.insert(0, source / "distro")
    for candidate in candidates:
        if (candidate / "tegu.toml").is_file():
            return candidate
    raise DefinitionError(
        "this installation of tegu lacks its distribution data (distro/tegu.toml)",
        hint="reinstall tegu, or run it from a complete source tree",
    )


def shipped_definition() -> Path:
    """Return the top file of Tegu Linux's own definition."""
    return shipped_directory() / "tegu.toml"
