"""Release notes, from the difference to the release before: Markdown, and a page for browsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.release.manifest import Manifest
from tegu.release.numbers import Number, support_of

if TYPE_CHECKING:
    from tegu.packages import Lock
    from tegu.release.cve import Advisory

__all__ = ["write_notes"]

_MIB = 1 << 20


def write_notes(
    manifest: Manifest,
    previous: Manifest | None,
    locks: Mapping[str, Lock],
    old: Mapping[str, Lock],
    advisories: Sequence[Advisory],
    system: str,
) -> dict[str, str]:
    """Return the notes by file name: notes.md and index.html."""
    from tegu.packages import diff

    support = support_of(Number.parse(manifest.number))
    changes = {
        name: [c for c in diff(old[name], lock).changes if c.set == "system"]
        for name, lock in locks.items()
        if name in old
    }
    facts: dict[str, Any] = {
        "system": system,
        "number": manifest.number,
        "date": manifest.date,
        "previous": previous.number if previous else None,
        "full": support.full.isoformat(),
        "security": support.security.isoformat(),
        "kernels": {name: _kernel(lock) for name, lock in locks.items()},
        "changes": changes,
        "packages": {name: len(lock.system) for name, lock in locks.items()},
        "figures": [
            (name, value, (previous.figures.get(name) if previous else None))
            for name, value in manifest.figures.items()
        ],
        "advisories": advisories,
        "open": _open(manifest),
        "data": _data_date(manifest),
        "reports": manifest.reports,
        "snapshot": manifest.snapshot,
        "issues": manifest.known_issues,
    }
    import jinja2

    here = Path(__file__).parent
    texts = {}
    for name, template in (("notes.md", "notes.md.j2"), ("index.html", "notes.html.j2")):
        environment = jinja2.Environment(
            autoescape=name.endswith(".html"),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters["figure"] = _figure
        environment.filters["change"] = _change
        texts[name] = environment.from_string((here / template).read_text()).render(facts)
    return texts


def _kernel(lock: Lock) -> str:
    found = [
        p for p in lock.system if p.name.startswith("linux-image-") and p.name[12:13].isdigit()
    ]
    return found[0].version if found else "none"


def _open(manifest: Manifest) -> list[dict[str, Any]]:
    findings = (manifest.cves or {}).get("findings", [])
    return [f for f in findings if f["status"] != "not_affected"]


def _data_date(manifest: Manifest) -> str | None:
    if manifest.cves is None:
        return None
    return f"{datetime.fromtimestamp(manifest.cves['date'], UTC):%Y-%m-%d}"


def _figure(value: float, name: str) -> str:
    if "bytes" in name:
        return f"{value / _MIB:.1f} MiB"
    if "seconds" in name:
        return f"{value:.2f} s"
    return f"{value:g}"


def _change(value: float, before: float | None) -> str:
    if not before:
        return "new"
    return f"{(value / before - 1) * 100:+.1f} %"
