"""Packages that come from no mirror: .deb files of our own, as a repository of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import DefinitionError
from tegu.files import write_atomic
from tegu.packages.deb import open_deb
from tegu.packages.lock import LOCAL

if TYPE_CHECKING:
    from tegu.packages.solve import SolverRepository
    from tegu.store import Store

__all__ = ["LocalPackage", "bring_in", "stanza", "write_index"]

LOCAL_PRIORITY = 32768
"""Above any that a definition can give: a local package wins over every repository's."""


@dataclass(frozen=True, slots=True)
class LocalPackage:
    """A .deb that is in the store; `stanza` is its entry in an index."""

    name: str
    version: str
    sha256: str
    stanza: str


def bring_in(path: Path, store: Store, architecture: str) -> LocalPackage:
    """Put the .deb at `path` into the store; raises DefinitionError when it does not fit."""
    if not path.is_file():
        raise DefinitionError(f"packages.local: {path} is not a file")
    with open_deb(path) as deb:
        fields = deb.fields
    if fields["Architecture"] not in ("all", architecture):
        raise DefinitionError(
            f"packages.local: {path} is for {fields['Architecture']}, the system is {architecture}"
        )
    sha256 = store.add_blob(path)
    filename = f"{fields['Package']}_{fields['Version'].partition(':')[2] or fields['Version']}"
    text = stanza(fields, f"{filename}_{fields['Architecture']}.deb", path.stat().st_size, sha256)
    return LocalPackage(fields["Package"], fields["Version"], sha256, text)


def stanza(fields: dict[str, str], filename: str, size: int, sha256: str) -> str:
    """Return a package's entry in a Packages file."""
    lines = [f"{key}: {value}" for key, value in fields.items()]
    lines += [f"Filename: {filename}", f"Size: {size}", f"SHA256: {sha256}"]
    return "\n".join(lines) + "\n"


def write_index(
    stanzas: Sequence[str], store: Store, *, repository: str = LOCAL, priority: int = LOCAL_PRIORITY
) -> SolverRepository:
    """Write the entries as a Packages file into the store, for the solver."""
    from tegu.packages.kinds import INDEXES
    from tegu.packages.solve import SolverRepository

    text = "\n".join(sorted(stanzas))
    key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    path = store.small(INDEXES, f"{key}.Packages")
    if not path.exists():
        write_atomic(path, text.encode("utf-8", "surrogateescape"))
    return SolverRepository(id=repository, packages=path, priority=priority, base=False)
