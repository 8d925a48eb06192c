"""The definition's layer on a configured tree: trimmed, laid over, derived, canonical, linted."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tegu.definition import Definition
from tegu.errors import BuildError
from tegu.image.canonical import canonicalise, clamp_times
from tegu.image.derived import derive
from tegu.image.lay import lay
from tegu.image.lint import lint
from tegu.image.manifest import Item, manifest, read_manifest, tree_digest, write_manifest
from tegu.image.sandbox import sandbox
from tegu.image.trees import Tree, unpacked_of
from tegu.image.trim import trim
from tegu.packages.lock import Lock
from tegu.store import Store

__all__ = ["KIND", "Configured", "make_configured", "open_configured"]

KIND = "systems-1"


@dataclass(frozen=True)
class Configured:
    """A finished tree: `layers` as in Tree, `digest` over all it holds, `derived` what was run."""

    key: str
    layers: tuple[str, ...]
    digest: str
    derived: tuple[str, ...]

    def directories(self, store: Store) -> list[Path]:
        return [store.root / layer for layer in self.layers]

    def items(self, store: Store) -> list[Item]:
        return read_manifest(store.root / KIND / self.key / "manifest")


def open_configured(store: Store, key: str) -> Configured | None:
    """Return the finished tree `key` if it and its layers are in the store."""
    directory = store.tree(KIND, key)
    if directory is None:
        return None
    try:
        raw = json.loads((directory / "system.json").read_text())
        found = Configured(raw["key"], tuple(raw["layers"]), raw["digest"], tuple(raw["derived"]))
    except (ValueError, KeyError, OSError):
        return None
    for layer in found.layers:
        kind, name, *_ = Path(layer).parts
        if store.tree(kind, name) is None:
            return None
    return found


def make_configured(
    store: Store,
    key: str,
    tree: Tree,
    definition: Definition,
    lock: Lock,
    scratch: Path,
    *,
    generated: Mapping[str, str],
    fresh: Collection[str] = (),
) -> Configured:
    """Put the definition on top of `tree`; BuildError with all findings if the lint refuses it.

    `fresh` are packages that this very build unpacked: the digests recorded then are taken for
    true. All other files are read again.
    """
    with store.new_tree(KIND, key) as directory:
        upper = directory / "upper"
        upper.mkdir(mode=0o755)
        below = tree.directories(store)
        with sandbox(below, scratch, upper=upper, timestamp=lock.timestamp) as box:
            trim(store, box, definition)
            lay(box, definition, lock, generated=generated)
            derived = derive(store, box)
            canonicalise(box.root, [upper])
        clamp_times([upper], lock.timestamp)
        with sandbox(
            [upper, *below], scratch, upper=None, timestamp=lock.timestamp, devices=False
        ) as box:
            known = recorded_contents(store, lock, tree, upper, fresh) if fresh else None
            items = manifest(box.root, known)
            findings = lint(box.root, items, definition)
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise BuildError(
                f"lint: {findings[0]}{more}", hint="\n      ".join(findings[1:20]) or None
            )
        write_manifest(directory / "manifest", items)
        made = Configured(
            key, (f"{KIND}/{key}/upper", *tree.layers), tree_digest(items), tuple(derived)
        )
        (directory / "system.json").write_text(json.dumps(asdict(made)))
    return made


def recorded_contents(
    store: Store, lock: Lock, tree: Tree, upper: Path, names: Collection[str]
) -> dict[str, str]:
    """Return the digests of files that are in the tree just as the named packages ship them."""
    above = [store.root / layer for layer in tree.layers if not layer.endswith("/lower")]
    changed: set[str] = set()
    for layer in (upper, *above):
        for directory, _, files in os.walk(layer):
            below = os.path.relpath(directory, layer)
            changed |= {os.path.normpath(f"{below}/{name}") for name in files}
    return {
        entry.path: entry.digest
        for package in unpacked_of(store, [p for p in lock.system if p.name in names])
        for entry in package.entries
        if entry.kind == "f" and entry.path not in changed
    }
