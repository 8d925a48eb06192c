"""The source of a recipe: fetched, verified, unpacked. Nothing unverified is ever unpacked."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import tegu
from tegu.errors import BuildError, FetchError, RecipeError, VerifyError
from tegu.packages.recipe.model import Source
from tegu.process import CommandError, require, run
from tegu.store import Store

__all__ = ["unpack_source"]

_MAX = 4 << 30  # bytes of an archive


def unpack_source(source: Source, recipe: Path, into: Path, store: Store) -> str:
    """Unpack `source` into the new directory `into`; returns what it was, for the record.

    Raises FetchError, VerifyError when it is not what the recipe says, RecipeError when it is not
    there, BuildError when it cannot be unpacked.
    """
    if source.tegu is not None:
        return _own(source.tegu, recipe, into)
    if source.debian is not None:
        return _debian(source, into, store)
    assert source.sha256 is not None
    archive = store.blob(source.sha256) or _archive(source, recipe, store)
    into.mkdir()
    tar = [require("tar", package="tar"), "--extract", "--no-same-owner", "--force-local"]
    options: list[str | Path] = [
        f"--strip-components={source.strip}",
        "--directory",
        into,
        "--file",
        archive,
    ]
    try:
        # GNU tar refuses names that lead out of the directory, and makes such links last.
        run([*tar, *options], timeout=1800)
    except CommandError as e:
        raise BuildError(f"{recipe}: the source cannot be unpacked: {e.message}") from e
    return f"{source.url or source.path} sha256:{source.sha256}"


def _archive(source: Source, recipe: Path, store: Store) -> Path:
    """Bring the archive into the store."""
    assert source.sha256 is not None
    if source.path is not None:
        path = recipe.parent / source.path
        if not path.is_file():
            raise RecipeError(f"{recipe}: source.path: {path} is not a file")
        _check(path, source.sha256, str(path))
        store.add_blob(path)
    else:
        assert source.url is not None
        with tempfile.NamedTemporaryFile(prefix="tegu-source-", dir=store.root / "tmp") as f:
            _download(source.url, Path(f.name), recipe)
            _check(Path(f.name), source.sha256, source.url)
            store.add_blob(Path(f.name))
    found = store.blob(source.sha256)
    assert found is not None, "it was verified and added"
    return found


def _check(path: Path, sha256: str, shown: str) -> None:
    with path.open("rb") as f:
        got = hashlib.file_digest(f, "sha256").hexdigest()
    if got != sha256:
        raise VerifyError(
            f"{shown} has SHA-256 {got}, the recipe wants {sha256}",
            hint="was it replaced? look at what changed before you change the recipe",
        )


def _download(url: str, target: Path, recipe: Path) -> None:
    from tegu.packages.repo.place import Place

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "file"):
        raise RecipeError(f"{recipe}: source.url: {parts.scheme or url!r} is no way to get it")
    head, _, name = url.rpartition("/")
    with Place(head) as place:
        try:
            target.write_bytes(place.read(name, _MAX))
        except FetchError as e:
            raise FetchError(f"{recipe}: the source is not there: {e.message}", hint=e.hint) from e


def _own(name: str, recipe: Path, into: Path) -> str:
    with resources.as_file(resources.files(tegu)) as root:
        place = (Path(root) / name).resolve()
        if not place.is_relative_to(Path(root).resolve()) or not place.is_dir():
            raise RecipeError(f"{recipe}: source.tegu: tegu has no directory {name}")
        shutil.copytree(place, into, ignore=shutil.ignore_patterns("__pycache__"))
    return f"tegu {tegu.__version__}: {name}"


def _debian(source: Source, into: Path, store: Store) -> str:
    from tegu.definition import load, shipped_definition
    from tegu.packages.source_package import fetch_source, find_source

    assert source.debian is not None
    unpacker = require("dpkg-source", package="dpkg-dev")
    package = find_source(load(shipped_definition()), source.debian, store, version=source.version)
    files = fetch_source(package, store)
    with tempfile.TemporaryDirectory(prefix="tegu-source-") as scratch:
        for name, path in files.items():
            (Path(scratch) / name).symlink_to(path)
        dsc = Path(scratch) / package.file(".dsc").name
        try:
            # Verified by the index's signature and checksums; the maintainer's own key is not here.
            run([unpacker, "--no-check", "-x", dsc, into], timeout=1800)
        except CommandError as e:
            raise BuildError(f"{source.debian}: {e.message}") from e
    return f"{package.name} {package.version} sha256:{package.file('.dsc').sha256}"
