"""Alternatives that come out the same in whatever order their packages were configured.

update-alternatives(1) in automatic mode links to the choice of highest priority. With one such
choice the links follow from the set of choices alone, and its record is sorted. Format of the
record: the manual page's section FILES, and what dpkg 1.22 writes.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Group", "links_in", "parse_group", "settled_paths"]

_RECORDS = Path("var/lib/dpkg/alternatives")
_LINKS = "etc/alternatives"
_WORD = re.compile(r"[A-Za-z0-9_.+@-]+")


@dataclass(frozen=True, slots=True)
class Group:
    """A record: its links by name (its own and its slaves'), and choices with their priorities."""

    name: str
    automatic: bool
    links: dict[str, str]
    choices: dict[str, int]

    @property
    def settled(self) -> bool:
        """Whether the choice does not depend on who came first."""
        best = max(self.choices.values(), default=0)
        return self.automatic and list(self.choices.values()).count(best) == 1


def parse_group(name: str, text: str) -> Group | None:
    """Parse the record of the group `name`; None if it is none."""
    lines = iter(text.split("\n"))
    try:
        status, link = next(lines), next(lines)
        links = {name: link}
        while slave := next(lines):
            links[slave] = next(lines)
        choices = {}
        while path := next(lines):
            choices[path] = int(next(lines))
            for _ in range(len(links) - 1):
                next(lines)
    except (StopIteration, ValueError):
        return None
    if status not in ("auto", "manual") or not all(p.startswith("/") for p in links.values()):
        return None
    return Group(name, status == "auto", links, choices)


def settled_paths(upper: Path, scripts: Sequence[str]) -> set[str]:
    """Return the paths that groups written to in the layer `upper` may change without harm.

    `scripts` have been run before; a group that one of them mentions, other than to
    update-alternatives, is left out: it may have been used as it was then.
    """
    found: set[str] = set()
    used: frozenset[str] | None = None
    for group in _groups(upper):
        if not group.settled:
            continue
        used = _words_used(scripts) if used is None else used
        names = {*group.links, *(posixpath.basename(p) for p in group.links.values())}
        if not names & used:
            found |= _paths(group)
    return found


def links_in(layer: Path) -> list[Path]:
    """Return the symbolic links in a layer that belong to alternatives.

    Their times are those of the choices there were when they were made.
    """
    paths = {path for group in _groups(layer) for path in _paths(group)}
    # /bin may be a link to usr/bin, which the layer need not hold.
    places = (layer / prefix / path for path in sorted(paths) for prefix in ("", "usr"))
    return [place for place in places if place.is_symlink()]


def _groups(layer: Path) -> Iterator[Group]:
    folder = layer / _RECORDS
    for record in sorted(folder.iterdir()) if folder.is_dir() else ():
        group = parse_group(record.name, record.read_text()) if record.is_file() else None
        if group is not None:
            yield group


def _paths(group: Group) -> set[str]:
    links = {f"{_LINKS}/{name}" for name in group.links}
    return links | {path.lstrip("/") for path in group.links.values()}


def _words_used(scripts: Iterable[str]) -> frozenset[str]:
    """Return all words of commands other than update-alternatives."""
    words: set[str] = set()
    for script in scripts:
        for line in script.replace("\\\n", " ").splitlines():
            if "update-alternatives" not in line and not line.lstrip().startswith("#"):
                words |= set(_WORD.findall(line))
    return frozenset(words)
