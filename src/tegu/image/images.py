"""Images in the store: list, find, compare, remove."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UsageError
from tegu.image.assemble import KIND, Assembled, open_assembled
from tegu.image.configured import KIND as SYSTEMS
from tegu.image.configured import open_configured
from tegu.image.manifest import Difference, compare, read_manifest
from tegu.store import Store

__all__ = ["ImageDiff", "diff_images", "find_image", "list_images", "remove_image", "tree_layers"]


def list_images(store: Store) -> list[Assembled]:
    """Return all whole images, newest first."""
    directory = store.root / KIND
    keys = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    found = [image for key in keys if (image := open_assembled(store, key)) is not None]
    return sorted(found, key=lambda image: -image.created)


def find_image(store: Store, name: str) -> Assembled:
    """Find by the start of its key, its system's name, or the path or name of one of its files."""
    wanted = Path(name).name
    images = list_images(store)
    for image in images:
        if any(wanted in (f.name, f"{f.name}.json") for f in image.images):
            return image
    by_key = [i for i in images if len(name) >= 4 and i.key.startswith(name)]
    if len(by_key) == 1:
        return by_key[0]
    if len(by_key) > 1:
        raise UsageError(f"{name} is the start of {len(by_key)} images' keys")
    for image in images:
        if name in (image.system, f"{image.system}-{image.version}"):
            return image
    raise UsageError(f"no image {name} in the store", hint="see `tegu image ls`")


@dataclass(frozen=True)
class ImageDiff:
    """Packages as name to (old, new) version, None where absent; files by path."""

    packages: dict[str, tuple[str | None, str | None]]
    files: list[Difference]


def _configured(store: Store, image: Assembled) -> Path | None:
    for path in (store.root / SYSTEMS).iterdir():
        record = path / "system.json"
        if record.is_file() and f'"digest": "{image.tree_digest}"' in record.read_text():
            return path
    return None


def tree_layers(store: Store, image: Assembled) -> list[Path] | None:
    """Return the layers (topmost first) of the tree an image was made of, None if they are gone."""
    path = _configured(store, image)
    found = open_configured(store, path.name) if path is not None else None
    return None if found is None else found.directories(store)


def _items(store: Store, image: Assembled) -> Path:
    path = _configured(store, image)
    if path is not None:
        return path / "manifest"
    raise UsageError(
        f"the store no longer has the tree that {image.key[:12]} was made of",
        hint="build it again, then compare",
    )


def diff_images(store: Store, old: Assembled, new: Assembled) -> ImageDiff:
    """Compare two images by packages and by every file in them."""
    names = sorted(old.packages.keys() | new.packages.keys())
    packages = {
        n: (old.packages.get(n), new.packages.get(n))
        for n in names
        if old.packages.get(n) != new.packages.get(n)
    }
    files: list[Difference] = []
    if old.tree_digest != new.tree_digest:
        files = compare(read_manifest(_items(store, old)), read_manifest(_items(store, new)))
    return ImageDiff(packages, files)


def remove_image(store: Store, image: Assembled) -> None:
    """Remove an image from the store; what it was made of stays until `gc`."""
    store.drop_tree(KIND, image.key)
