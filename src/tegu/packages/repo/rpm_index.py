"""The RPM side: rpm-md, one repository per base architecture, with a signed repomd.xml.

createrepo_c writes what is said of each package and repomd.xml; the files between are put together
from pieces, as those of apt are. Format: https://github.com/rpm-software-management/createrepo_c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tegu.packages.repo.apt_index import About
from tegu.packages.repo.catalogue import Item
from tegu.packages.repo.chunks import assemble
from tegu.packages.repo.repository import Repository
from tegu.packages.repo.rpm_item import KINDS, createrepo, fragments
from tegu.packages.repo.sign import Signers

__all__ = ["UP", "write_rpm"]

UP = "../../../"
"""From rpm/CHANNEL/ARCHITECTURE/ to the root that has the pool."""

_BASE = {"i386": "i386", "i486": "i386", "i586": "i386", "i686": "i386", "armv7hl": "armhfp"}
_OF_DEBIAN = {"amd64": "x86_64", "arm64": "aarch64", "ppc64el": "ppc64le", "armhf": "armhfp"}
_HEADS = {
    "primary": (
        'metadata xmlns="http://linux.duke.edu/metadata/common" '
        'xmlns:rpm="http://linux.duke.edu/metadata/rpm"',
        "metadata",
    ),
    "filelists": ('filelists xmlns="http://linux.duke.edu/metadata/filelists"', "filelists"),
    "other": ('otherdata xmlns="http://linux.duke.edu/metadata/other"', "otherdata"),
}


def write_rpm(
    repo: Repository, items: Sequence[Item], about: About, signers: Signers, target: Path
) -> set[str]:
    """Write the repositories of `items` into the new directory `target`; returns their data files.

    Packages for `noarch` and sources are in each. Must be called within `repo.catalogue.change()`.
    """
    everywhere = ("noarch", "src", "nosrc")
    bases = {_BASE.get(i.arch, i.arch) for i in items if i.arch not in everywhere}
    bases |= {_OF_DEBIAN.get(a, a) for a in repo.settings.architectures}
    texts = {item.sha256: fragments(item, UP) for item in items}
    kept: set[str] = set()
    for base in sorted(bases):
        mine = [i for i in items if i.arch in everywhere or _BASE.get(i.arch, i.arch) == base]
        folder = target / base / "repodata"
        folder.mkdir(parents=True)
        cr = createrepo()
        repomd = cr.Repomd()
        repomd.set_revision(str(about.date))
        repomd.add_repo_tag(f"{repo.settings.name} {about.suite}")
        for kind in KINDS:
            name = _write_kind(repo, kind, mine, texts, f"rpm {about.suite} {base}", folder)
            record = cr.RepomdRecord(kind, None)
            data, index = name
            record.location_href = f"repodata/{data.name}"
            record.checksum_type = record.checksum_open_type = "sha256"
            record.checksum = data.name.partition("-")[0]
            record.checksum_open = index[0]
            record.size = data.stat().st_size
            record.size_open = index[1]
            record.timestamp = about.date
            repomd.set_record(record)
            kept.add(f"{base}/repodata/{data.name}")
        text = repomd.xml_dump().encode()
        (folder / "repomd.xml").write_bytes(text)
        (folder / "repomd.xml.asc").write_text(signers.detach_sign(text))
    return kept


def _write_kind(
    repo: Repository,
    kind: str,
    items: Sequence[Item],
    texts: dict[str, dict[str, bytes]],
    scope: str,
    folder: Path,
) -> tuple[Path, tuple[str, int]]:
    """Write one of the files; returns its path, and hash and size of what it holds."""
    head, tail = _HEADS[kind]
    index = assemble(
        repo.catalogue,
        f"{scope} {kind}",
        [(i.name, texts[i.sha256][kind]) for i in items],
        head=f'<?xml version="1.0" encoding="UTF-8"?>\n<{head} packages="{len(items)}">\n'.encode(),
        tail=f"</{tail}>\n".encode(),
        forms=(".gz",),
    )
    content = index.forms[".gz"]
    path = folder / f"{hashlib.sha256(content).hexdigest()}-{kind}.xml.gz"
    path.write_bytes(content)
    return path, (index.sha256, index.size)
