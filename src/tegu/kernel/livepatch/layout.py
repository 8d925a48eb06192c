"""Which structures have another layout in one object than in another: by their DWARF, pahole(1)."""

from __future__ import annotations

import re
from pathlib import Path

from tegu.process import require, run

__all__ = ["changed_layouts", "layouts"]

_HEAD = re.compile(r"^(?:struct|union) (\w+) \{")


def changed_layouts(before: Path, after: Path) -> list[str]:
    """Return the structures and unions that both objects know, and lay out differently, sorted."""
    old, new = (layouts(_pahole(p)) for p in (before, after))
    return sorted(name for name in old.keys() & new.keys() if old[name] != new[name])


def layouts(text: str) -> dict[str, str]:
    """Return the text that pahole prints of each structure, by its name."""
    found: dict[str, str] = {}
    name, lines = "", list[str]()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, lines = head[1], []
        if name:
            lines.append(line)
            if line.startswith("}"):
                # Two of one name differ only where a file defines its own: all of them count.
                found[name] = found.get(name, "") + "\n".join(lines)
                name = ""
    return found


def _pahole(path: Path) -> str:
    program = require("pahole", package="dwarves")
    return run([program, path], timeout=600, check=False).stdout
