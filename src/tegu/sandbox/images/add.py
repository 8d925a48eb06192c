"""From an image to a template: fetched, checked, unpacked, written down."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError
from tegu.sandbox.images.catalog import (
    ImageTemplate,
    catalog,
    check_name,
    find_image,
    save_image,
    sweep,
)
from tegu.sandbox.images.layout import Image, read_image
from tegu.sandbox.images.source import fetch, parse_source
from tegu.sandbox.images.unpack import unpack
from tegu.sandbox.spec import BoxSpec, parse_size
from tegu.sandbox.state import locked

__all__ = ["MAX_SIZE", "add_image", "obtain"]

MAX_SIZE = "16G"
"""What an image may take unpacked unless told otherwise."""


def add_image(
    name: str,
    source: str,
    *,
    max_size: int | str = MAX_SIZE,
    authfile: Path | None = None,
    tls_verify: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> ImageTemplate:
    """Make the template `name` of an image, in place of one of that name.

    `source` is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] or docker://REF;
    `max_size` bounds the bytes unpacked. Content that is here already is neither fetched nor
    unpacked again. Raises TeguError: one line that says what is wrong with the image.
    """
    check_name(name)
    place = parse_source(source)
    most = parse_size(max_size, "max-size")
    root = catalog(make=True)
    what = f"image {place}"
    with locked(root, "images"):
        layout = Path(tempfile.mkdtemp(prefix=".layout-", dir=root))
        try:
            progress(f"fetching {place}")
            fetch(
                place, layout, root / "blobs", most=most, authfile=authfile, tls_verify=tls_verify
            )
            image = read_image(layout, root / "blobs", what)
            env = _environment(image, what)
            done = unpack(
                image,
                root / "blobs",
                root / "trees" / image.chain,
                what,
                most=most,
                on_layer=lambda number, count: progress(f"layer {number} of {count}"),
            )
        except BaseException:
            with suppress(OSError):
                sweep()
            raise
        finally:
            shutil.rmtree(layout, ignore_errors=True)
        if done.account.home:
            env.setdefault("HOME", done.account.home)
        before = find_quietly(name)
        template = ImageTemplate(
            name=name,
            source=str(place),
            digest=image.digest,
            chain=image.chain,
            env=env,
            entrypoint=image.entrypoint,
            cmd=image.cmd,
            cwd=image.cwd,
            user=done.account.words,
            blobs=image.blobs,
            size=sum(layer.size for layer in image.layers),
            created=time.time(),
            left_out=done.left_out if done.new or before is None else before.left_out,
        )
        save_image(template)
        sweep()
    return template


def find_quietly(name: str) -> ImageTemplate | None:
    """Return the template of that name, if there is a whole one."""
    try:
        return find_image(name)
    except SandboxError:
        return None


def obtain(source: str, progress: Callable[[str], None] = lambda _: None) -> ImageTemplate:
    """Return the template of an image that need not have a name: made at its first use.

    A tag that has moved since is not looked at again: `add_image` does that.
    """
    place = str(parse_source(source))
    tail = re.sub(r"[^a-z0-9._-]+", "-", place.rpartition("/")[2].lower()).strip("-._")[:60]
    name = f"image-{hashlib.sha256(place.encode()).hexdigest()[:12]}-{tail}".rstrip("-")
    return find_quietly(name) or add_image(name, source, progress=progress)


def _environment(image: Image, what: str) -> dict[str, str]:
    env = {}
    for word in image.env:
        variable, mark, value = word.partition("=")
        if not mark:
            raise SandboxError(f"{what}: configuration: Env: {word[:80]!r} is not NAME=VALUE")
        env[variable] = value
    try:
        BoxSpec(env=env, cwd=image.cwd)
    except Exception as e:
        raise SandboxError(f"{what}: configuration: {e}") from e
    return env
