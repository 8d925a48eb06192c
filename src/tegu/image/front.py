"""What the front door and other rooms call: from a definition's path to images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.definition import Definition, load
from tegu.errors import LockError
from tegu.image.build import BuildOptions, Built, build
from tegu.image.configured import KIND as SYSTEMS
from tegu.image.gc import Freed, collect
from tegu.image.manifest import compare, read_manifest
from tegu.image.rot import drop_damaged
from tegu.image.unpack import KIND as PACKAGES
from tegu.image.unpack import Unpacked
from tegu.linux import run_isolated
from tegu.packages import Lock, LockedPackage, default_lock_path, make_lock, stale
from tegu.store import Store

__all__ = [
    "BuiltImage",
    "build_definition",
    "build_locked",
    "collect_isolated",
    "lock_for",
    "verify_build",
    "verify_store",
]

Event = tuple[str, Any]


def _silent(_: Event) -> None:
    return None


@dataclass(frozen=True)
class BuiltImage:
    """The bootable image of a definition: `path` is a qcow2 or raw file in the store."""

    path: Path
    definition: Definition
    lock: Lock
    built: Built


def lock_for(
    file: Path,
    *,
    profile: str | None,
    lock_path: Path | None,
    locked: bool,
    store: Store,
    on_event: Callable[[Event], None] = _silent,
) -> tuple[Definition, Lock]:
    """Load the definition `file` and its lock; make or renew the lock where that is needed.

    The lock is beside the definition (`tegu.lock`, or `tegu.PROFILE.lock` when a profile is asked
    for). With `locked` a missing or outdated one is a LockError.
    """
    definition = load(file, profile=profile)
    path = lock_path or default_lock_path(file, profile)
    previous = Lock.read(path) if path.exists() else None
    outdated = stale(previous, definition) if previous is not None else None
    if previous is not None and outdated is None:
        # Needs no network: only notices local packages that are no longer what was locked.
        again = previous if locked else make_lock(definition, store, previous=previous)
        if again == previous:
            return definition, previous
        outdated = "a local package has changed since it was made"
    why = "there is no lock" if previous is None else f"{path}: {outdated}"
    if locked:
        raise LockError(why, hint="run `tegu lock`, look at the difference, commit it")
    on_event(("step", "lock"))
    lock = make_lock(definition, store, previous=previous)
    lock.write(path)
    on_event(("note", f"{why}: wrote {path}, {len(lock.system)} packages"))
    return definition, lock


def build_locked(
    definition: Definition,
    lock: Lock,
    store: Store,
    *,
    subject: Path,
    options: BuildOptions | None = None,
    on_event: Callable[[Event], None] = _silent,
) -> Built:
    """Build; see `tegu.image.build.build`."""
    return build(
        definition,
        lock,
        store,
        subject=str(subject.absolute()),
        options=options or BuildOptions(),
        on_event=on_event,
    )


def build_definition(
    file: Path,
    *,
    profile: str | None = None,
    store: Store | None = None,
    on_event: Callable[[Event], None] = _silent,
) -> BuiltImage:
    """Build the definition `file` and return its bootable image."""
    used = store or Store.default()
    with used.shared():
        definition, lock = lock_for(
            file, profile=profile, lock_path=None, locked=False, store=used, on_event=on_event
        )
        built = build_locked(definition, lock, used, subject=file, on_event=on_event)
    for wanted in ("qcow2", "raw", "vhd", "vhd-fixed"):
        for image in built.images.images:
            if image.format == wanted:
                path = built.images.directory(used) / "files" / image.name
                return BuiltImage(path, definition, lock, built)
    raise LockError(
        f"{file} makes no image that can be booted",
        hint='add one to image.formats, such as "qcow2"',
    )


def verify_build(
    built: Built, store: Store, *, on_event: Callable[[Event], None] = _silent
) -> list[str]:
    """Build again in an empty store that shares only the downloads; returns what differs.

    Nothing made before is used: packages are unpacked, byte code compiled, trees configured anew.
    """
    with store.scratch() as scratch:
        second = Store(scratch / "store")
        (second.root / "blobs").rmdir()
        (second.root / "blobs").symlink_to(store.root / "blobs")
        on_event(("step", "second build"))
        again = build(built.definition, built.lock, second, subject="verify", on_event=on_event)
        first = {i.name: i.sha256 for i in built.images.images if i.sha256}
        other = {i.name: i.sha256 for i in again.images.images if i.sha256}
        found = [f"{name} differs" for name in first if other.get(name) != first[name]]
        if built.tree_digest != again.tree_digest:
            before, after = (
                _items(s, d) for s, d in ((store, built.tree_digest), (second, again.tree_digest))
            )
            found += [f"/{d.path}: {d.what}" for d in compare(before, after)]
        run_isolated(lambda _: _empty(second))
    return found


def _items(store: Store, digest: str) -> list[Any]:
    for path in (store.root / SYSTEMS).iterdir():
        if f'"digest": "{digest}"' in (path / "system.json").read_text():
            return read_manifest(path / "manifest")
    raise LockError("the tree of the build is gone from the store")


def _empty(store: Store) -> None:
    """Remove a store's trees as the mapped root that owns them."""
    from tegu.store.store import remove_tree

    for path in store.root.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)


def collect_isolated(store: Store, *, days: float, everything: bool) -> Freed:
    """Collect garbage, as the mapped root that owns the trees."""
    return run_isolated(lambda _: collect(store, days=days, everything=everything))


def verify_store(store: Store) -> list[str]:
    """Read all blobs and unpacked packages; drop the damaged. Returns a line for each."""

    def work(_: Callable[[Any], None]) -> list[str]:
        import hashlib

        found = []
        for path in sorted((store.root / "blobs").glob("*/*")):
            with path.open("rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != path.name:
                    store.drop_blob(path.name)
                    found.append(f"blob {path.name}")
        packages = store.root / PACKAGES
        for path in sorted(packages.iterdir()) if packages.is_dir() else ():
            name = LockedPackage(path.name, "", "", 0, path.name, "", "", "", "")
            if (damage := Unpacked(name, path).damage()) is not None:
                drop_damaged(store, [path.name])
                found.append(f"package {damage}")
        return found

    return run_isolated(work)
