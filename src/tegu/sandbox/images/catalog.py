"""Images that are here, by name: what each is, and what its programs start with.

They lie in `images` below the supervisor's state: `names/NAME.json`, `trees/CHAIN/rootfs` by the
content of all layers, and `blobs`, an OCI layout's, so that a layer is fetched once.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, UsageError
from tegu.files import write_atomic
from tegu.sandbox.images.unpack import drop_trees
from tegu.sandbox.state import locked, make_state, state_directory

__all__ = [
    "NAME",
    "ImageTemplate",
    "catalog",
    "check_name",
    "find_image",
    "image_names",
    "list_images",
    "remove_image",
    "save_image",
]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


@dataclass(frozen=True)
class ImageTemplate:
    """A template made of an image. `user` is "UID:GID[,GID...]"; `size` counts the blobs' bytes,
    `left_out` what no box has: devices, and attributes that mean nothing there."""

    name: str
    source: str
    digest: str
    chain: str
    env: dict[str, str]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    cwd: str
    user: str
    blobs: tuple[str, ...]
    size: int
    created: float
    left_out: dict[str, int]

    @property
    def root(self) -> Path:
        """The root file system."""
        return catalog() / "trees" / self.chain / "rootfs"

    def command(self, words: list[str], entrypoint: str | None = None) -> list[str]:
        """Return what to run when a user says `words`: they take the place of the image's own
        arguments, and `entrypoint`, unless None, that of its program. Raises UsageError when
        nothing is left to run."""
        if entrypoint is not None:
            found = [*([entrypoint] if entrypoint else []), *words]
        else:
            found = [*self.entrypoint, *(words or self.cmd)]
        if not found:
            raise UsageError(
                f"template {self.name}: it names no program of its own: give a command"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "root": str(self.root)}


def catalog(*, make: bool = False) -> Path:
    """Return the directory that holds images; `make` makes it. Raises SandboxError."""
    state = state_directory().absolute()
    path = state / "images"
    if make:
        make_state(state)
        try:
            for name in ("", "names", "trees", "blobs"):
                (path / name).mkdir(mode=0o755, exist_ok=True)
        except OSError as e:
            raise SandboxError(f"cannot make {e.filename}: {e.strerror}") from e
    return path


def check_name(name: str) -> str:
    """Return a name that a template may have. Raises UsageError."""
    if name == "host" or NAME.fullmatch(name) is None:
        raise UsageError(
            f"template: {name!r} is no name for one",
            hint="small letters, digits and . _ - , and not 'host'",
        )
    return name


def save_image(image: ImageTemplate) -> None:
    """Write it down under its name."""
    said = json.dumps(asdict(image), indent=1)
    write_atomic(catalog() / "names" / f"{image.name}.json", said + "\n")


def find_image(name: str) -> ImageTemplate | None:
    """Return the template of that name, or None. Raises SandboxError when it is damaged."""
    if NAME.fullmatch(name) is None:
        return None
    path = catalog() / "names" / f"{name}.json"
    try:
        said = json.loads(path.read_text())
        kept = {f.name for f in fields(ImageTemplate)}
        known = {k: v for k, v in said.items() if k in kept}
        for listed in ("entrypoint", "cmd", "blobs"):
            known[listed] = tuple(known[listed])
        image = ImageTemplate(**known)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise SandboxError(
            f"template {name}: {path}: {e}", hint=f"`tegu sandbox template remove {name}`"
        ) from e
    if not image.root.is_dir():
        raise SandboxError(
            f"template {name}: its tree {image.root} is gone", hint="add the image again"
        )
    return image


def image_names() -> list[str]:
    """Return the names that are taken, sorted."""
    return sorted(path.stem for path in (catalog() / "names").glob("*.json"))


def list_images() -> list[ImageTemplate]:
    """Return all templates made of images, sorted by name. Raises SandboxError."""
    return [image for name in image_names() if (image := find_image(name)) is not None]


def remove_image(name: str) -> None:
    """Forget a name, and drop trees and blobs that no other needs; boxes that run keep theirs.

    Raises UsageError when there is none of that name.
    """
    root = catalog(make=True)
    with locked(root, "images"):
        path = root / "names" / f"{check_name(name)}.json"
        try:
            path.unlink()
        except FileNotFoundError as e:
            raise UsageError(f"there is no template {name}") from e
        sweep()


def sweep() -> None:
    """Drop what no name needs; the lock `images` is held."""
    root = catalog()
    chains: set[str] = set()
    digests: set[str] = set()
    for path in (root / "names").glob("*.json"):
        try:
            said = json.loads(path.read_text())
            chains.add(said["chain"])
            digests.update(digest.removeprefix("sha256:") for digest in said["blobs"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # a record that cannot be read may need anything
    trees = [p for p in (root / "trees").iterdir() if p.name[0] != "." and p.name not in chains]
    drop_trees(trees)
    blobs = root / "blobs" / "sha256"
    for blob in blobs.iterdir() if blobs.is_dir() else ():
        if blob.name not in digests:
            blob.unlink(missing_ok=True)
