"""Two releases side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tegu.release.manifest import Manifest
from tegu.release.numbers import Number
from tegu.release.workshop import Workshop

if TYPE_CHECKING:
    from tegu.packages.compare import Change

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Packages by profile, figures as (before, now), vulnerabilities gone and come."""

    packages: dict[str, tuple[Change, ...]]
    figures: dict[str, tuple[float | None, float | None]]
    mended: tuple[str, ...]
    appeared: tuple[str, ...]


def compare(shop: Workshop, old: Number, new: Number) -> Comparison:
    """Return what differs between two releases of the workshop; ReleaseError when one is not."""
    from tegu.packages import Lock, diff

    before, after = shop.manifest(old), shop.manifest(new)
    packages = {}
    for name in sorted(before.locks.keys() & after.locks.keys()):
        locks = [Lock.read(shop.work(n) / "files" / f"{name}.lock") for n in (old, new)]
        packages[name] = tuple(c for c in diff(*locks).changes if c.set == "system")
    names = sorted(before.figures.keys() | after.figures.keys())
    figures = {
        n: (before.figures.get(n), after.figures.get(n))
        for n in names
        if before.figures.get(n) != after.figures.get(n)
    }
    one, other = _open(before), _open(after)
    return Comparison(packages, figures, tuple(sorted(one - other)), tuple(sorted(other - one)))


def _open(manifest: Manifest) -> set[str]:
    found = (manifest.cves or {}).get("findings", [])
    return {f"{f['id']} {f['source']}" for f in found if f["status"] != "not_affected"}
