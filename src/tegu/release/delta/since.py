"""The delta from the release before, when a release is prepared."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.host.delta import Description
from tegu.release.delta.make import make_delta
from tegu.release.delta.trees import mounted

if TYPE_CHECKING:
    from tegu.image import Assembled
    from tegu.release.manifest import Manifest
    from tegu.store import Store

__all__ = ["delta_since"]

Say = Callable[[str], None]


def delta_since(
    previous: Manifest,
    profile: str,
    built: Assembled,
    store: Store,
    output: Path,
    *,
    say: Say = lambda _: None,
) -> Description | None:
    """Write the delta from a profile of `previous` to what was `built`; returns what it is.

    None when the store no longer has the tree of the image that `previous` published.
    """
    from tegu.image import tree_layers
    from tegu.linux import run_isolated

    old = _published(previous, profile, store)
    if old is None or tree_layers(store, old) is None:
        return None

    def work(report: Say) -> Description:
        with (
            tempfile.TemporaryDirectory(prefix="tegu-delta-") as scratch,
            mounted(old, store, Path(scratch)) as before,
            mounted(built, store, Path(scratch)) as after,
        ):
            return make_delta(before, after, output, say=report).description

    return run_isolated(work, on_event=say)


def _published(previous: Manifest, profile: str, store: Store) -> Assembled | None:
    """Return the image of the store whose file is the very one that `previous` lists."""
    from tegu.image import list_images

    files = {
        Path(f.path).name: f for f in previous.files if f.kind == "image" and f.profile == profile
    }
    for image in list_images(store):
        for path in image.files(store):
            wanted = files.get(path.name)
            if wanted is None or not path.is_file() or path.stat().st_size != wanted.size:
                continue
            with path.open("rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() == wanted.sha256:
                    return image
    return None
