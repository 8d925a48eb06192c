"""Which files a missing fix touches, and whether our kernel is built of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tegu.kernel.gitrepo import Repo
from tegu.kernel.missing import Missing

__all__ = ["with_files"]


def with_files(
    missing: Sequence[Missing],
    repo: Repo,
    built: frozenset[str] | None,
    cves: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Missing]:
    """Return `missing` with the files that each touches; what is not built comes last.

    `built` are the sources that a configuration compiles (None: not known), `cves` the CVE numbers
    by commit, beside those that the messages name. Of a Makefile or a linker script nobody has
    noted whether it is used: that is not known either.
    """
    files = repo.files(m.commit.id for m in missing)
    found = [
        replace(
            m,
            files=files[m.commit.id],
            built=None if built is None else _built(files[m.commit.id], built),
            cves=tuple(dict.fromkeys([*m.cves, *(cves or {}).get(m.commit.id, ())])),
        )
        for m in missing
    ]
    return sorted(found, key=lambda m: m.built is False)


def _built(files: Sequence[str], built: frozenset[str]) -> bool | None:
    if any(f in built for f in files):
        return True
    noted = (".c", ".h", ".S", ".rst", ".txt", ".yaml")
    unsure = any(
        not f.endswith(noted) or f.endswith(".lds.S")
        for f in files
        if not f.startswith(("Documentation/", "LICENSES/", "samples/", "tools/testing/"))
    )
    return None if unsure else False
