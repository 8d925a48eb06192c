"""The apt side: Packages files by hash, and the signed InRelease that names them.

Format: https://wiki.debian.org/DebianRepository/Format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from tegu.packages.repo.catalogue import Item
from tegu.packages.repo.chunks import assemble
from tegu.packages.repo.deb_item import stanza
from tegu.packages.repo.repository import Repository
from tegu.packages.repo.settings import COMPONENT, SNAPSHOT_COMPONENT
from tegu.packages.repo.sign import Signers

__all__ = ["BY_HASH", "About", "architectures", "write_apt"]

BY_HASH = "by-hash/SHA256"


@dataclass(frozen=True, slots=True)
class About:
    """What an index says of itself. `date` and `valid_until` are seconds since the epoch."""

    suite: str
    date: int
    valid_until: int | None

    @property
    def component(self) -> str:
        """The one component of its apt side."""
        return SNAPSHOT_COMPONENT if self.valid_until is None else COMPONENT


def architectures(repo: Repository, items: Sequence[Item]) -> list[str]:
    """Return the architectures that get an index: those of the settings, and those of packages."""
    return sorted({*repo.settings.architectures, *(i.arch for i in items)} - {"all"})


def write_apt(
    repo: Repository, items: Sequence[Item], about: About, signers: Signers, target: Path
) -> set[str]:
    """Write the indexes of `items` into the new directory `target`; returns its by-hash files.

    Must be called within `repo.catalogue.change()`.
    """
    offered = repo.catalogue.offered(about.suite)
    stanzas = [(i.name, i.arch, stanza(i, offered.get(i.sha256, 100))) for i in items]
    sums: list[str] = []
    by_hash: set[str] = set()
    names = architectures(repo, items)
    for architecture in names:
        folder = f"{about.component}/binary-{architecture}"
        index = assemble(
            repo.catalogue,
            f"apt {about.suite} {architecture}",
            [(name, text) for name, arch, text in stanzas if arch in ("all", architecture)],
        )
        # Announced, so that clients can check what they decompress, but not served: as Debian does.
        sums.append(f" {index.sha256} {index.size} {folder}/Packages")
        (target / folder / BY_HASH).mkdir(parents=True)
        for form, content in index.forms.items():
            sha256 = hashlib.sha256(content).hexdigest()
            sums.append(f" {sha256} {len(content)} {folder}/Packages{form}")
            path = f"{folder}/{BY_HASH}/{sha256}"
            (target / path).write_bytes(content)
            (target / folder / f"Packages{form}").hardlink_to(target / path)
            by_hash.add(path)
    text = _release(repo, about, names, sums)
    (target / "InRelease").write_text(signers.clear_sign(text))
    return by_hash


def _release(repo: Repository, about: About, names: Sequence[str], sums: Sequence[str]) -> str:
    lines = [
        f"Origin: {repo.settings.name}",
        f"Label: {repo.settings.name}",
        f"Suite: {about.suite}",
        f"Codename: {about.suite}",
        f"Date: {formatdate(about.date, usegmt=True).replace('GMT', 'UTC')}",
    ]
    if about.valid_until is not None:
        until = formatdate(about.valid_until, usegmt=True).replace("GMT", "UTC")
        lines.append(f"Valid-Until: {until}")
    lines += [
        f"Architectures: {' '.join(names)}",
        f"Components: {about.component}",
        "Acquire-By-Hash: yes",
        "No-Support-for-Architecture-all: Packages",
    ]
    if repo.settings.description.strip():
        lines.append(f"Description: {repo.settings.description.strip()}")
    return "\n".join([*(line.rstrip() for line in lines), "SHA256:", *sums]) + "\n"
