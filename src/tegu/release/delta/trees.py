"""The trees that a delta is made of: a directory, a lock, an image of the store, an EROFS file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import UsageError
from tegu.process import require, run

if TYPE_CHECKING:
    from tegu.image import Assembled
    from tegu.store import Store

__all__ = ["mounted", "open_tree"]

_EROFS = bytes.fromhex("e2e1f5e0")  # EROFS_SUPER_MAGIC_V1, little-endian, at byte 1024


@contextmanager
def open_tree(name: str, store: Store, scratch: Path) -> Iterator[Path]:
    """Show the tree that `name` means as a directory while the block runs.

    `name` is a directory; a file with an EROFS image; or an image of the store, by key, name or
    file. Images of the store are mounted, so this runs within `tegu.linux.run_isolated`.
    """
    path = Path(name)
    if path.is_dir():
        yield path
    elif _is_erofs(path):
        place = scratch / f"tree-{path.name}"
        program = require("fsck.erofs", package="erofs-utils")
        run([program, f"--extract={place}", "--preserve", path], timeout=3600)
        yield place
    else:
        with _of_store(name, store, scratch) as root:
            yield root


def _is_erofs(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            f.seek(1024)
            return f.read(4) == _EROFS
    except OSError:
        return False


@contextmanager
def _of_store(name: str, store: Store, scratch: Path) -> Iterator[Path]:
    from tegu.image import find_image

    with mounted(find_image(store, name), store, scratch) as root:
        yield root


@contextmanager
def mounted(image: Assembled, store: Store, scratch: Path) -> Iterator[Path]:
    """Mount the tree of an image of the store below `scratch` while the block runs."""
    from tegu.image import tree_layers
    from tegu.linux import overlay, unmount

    layers = tree_layers(store, image)
    if layers is None:
        raise UsageError(
            f"the store no longer has the tree of {image.system}-{image.version}",
            hint="build it again, then make the delta",
        )
    root = scratch / f"tree-{image.key[:16]}"
    root.mkdir(exist_ok=True)
    overlay(layers, root, upper=None, work=None)
    try:
        yield root
    finally:
        unmount(root)
