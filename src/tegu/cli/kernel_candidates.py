"""What `tegu kernel bisect` chooses from: commits, kernel packages, images of releases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tegu.lab import Bootable, Space

__all__ = [
    "Candidates",
    "base_image",
    "commits",
    "given_packages",
    "images",
    "packages",
    "published_packages",
]


class Candidates(NamedTuple):
    """What there is to choose from: the ends by their full names, and how one is made bootable."""

    kind: str
    space: Space
    good: str
    bad: str
    titles: Callable[[str], str]
    make: Callable[[str, Callable[[str], None]], Bootable]


@contextmanager
def commits(
    repo: Path,
    good: str,
    bad: str,
    image: Path | None,
    append: str,
    *,
    build: str | None,
    recipe: Path | None,
    jobs: int | None,
) -> Iterator[Candidates]:
    from tegu.kernel import CommitLine, Repo, commit_builder, load_recipe
    from tegu.store import Store

    opened = Repo(repo)
    line = CommitLine(opened, good, bad)
    loaded = load_recipe(recipe) if build is None else None
    store = Store.default()
    with commit_builder(opened, store, recipe=loaded, command=build, jobs=jobs) as builder:

        def make(commit: str, say: Callable[[str], None]) -> Bootable:
            product = builder.build(commit, builder.work.parent / "out", say)
            if product.image is not None:
                return _bootable(product.image)
            return _bootable(base_image(image), product.kernel, append)

        yield Candidates("commits", line, line.good, line.bad, line.subject, make)


@contextmanager
def packages(
    found: dict[str, Callable[[], Path]], good: str, bad: str, image: Path, append: str
) -> Iterator[Candidates]:
    """Choose from kernel packages: by version, each with what brings its file."""
    import shutil

    from tegu.kernel import unpack_kernel
    from tegu.lab import Line
    from tegu.packages.version import sort_key
    from tegu.store import Store

    ordered = sorted(found, key=sort_key)
    good, bad = _in_order(_end(good, found), _end(bad, found), ordered)
    store = Store.default()
    with store.shared(), store.scratch() as scratch:

        def make(version: str, say: Callable[[str], None]) -> Bootable:
            say("unpack")
            place = scratch / "kernel"
            shutil.rmtree(place, ignore_errors=True)
            return _bootable(image, unpack_kernel(found[version](), place), append)

        yield Candidates("packages", Line(ordered), good, bad, lambda _: "", make)


def given_packages(paths: Sequence[Path]) -> dict[str, Callable[[], Path]]:
    """Return package files by their versions."""
    from functools import partial

    from tegu.errors import UsageError
    from tegu.kernel import package_version

    found: dict[str, Callable[[], Path]] = {}
    for path in _files(paths, "linux-image-*.deb"):
        version = package_version(path)
        if version in found:
            raise UsageError(f"{path.name} and another package are both version {version}")
        found[version] = partial(Path, path)
    return found


def published_packages(pattern: str, definition: Path | None) -> dict[str, Callable[[], Path]]:
    """Return the packages that the repositories of a definition have, by their versions."""
    from functools import partial

    from tegu.definition import load, shipped_definition
    from tegu.errors import UsageError
    from tegu.kernel.recipe import ARCHITECTURES
    from tegu.packages import fetch_version, find_versions
    from tegu.store import Store

    store = Store.default()
    architecture = ARCHITECTURES["x86-64"].deb
    found: dict[str, Callable[[], Path]] = {}
    names: dict[str, str] = {}
    loaded = load(definition or shipped_definition())
    for each in find_versions(loaded, pattern, store, architecture):
        name, version = each.package.name, each.package.version
        if version in names:
            raise UsageError(
                f"{names[version]} and {name} are both version {version}",
                hint="name one of them, or a narrower pattern",
            )
        names[version] = name
        found[version] = partial(fetch_version, each, store)
    return found


def images(paths: Sequence[Path], good: str, bad: str) -> Candidates:
    from tegu.errors import UsageError
    from tegu.lab import Line

    found: dict[str, Path] = {}
    for path in _files(paths, "*.qcow2", "*.raw"):
        if path.name in found:
            raise UsageError(f"two images are named {path.name}")
        found[path.name] = path
    ordered = list(found)
    good, bad = _in_order(_end(good, found), _end(bad, found), ordered)
    return Candidates(
        "images",
        Line(ordered),
        good,
        bad,
        lambda _: "",
        lambda name, _say: _bootable(found[name]),
    )


def _bootable(image: Path, kernel: Any = None, append: str = "") -> Bootable:
    from tegu.lab import Bootable

    if kernel is None:
        return Bootable(image)
    return Bootable(image, kernel.image, kernel.initrd, append, kernel.modules)


def base_image(image: Path | None) -> Path:
    from tegu.errors import UsageError

    if image is None or not image.is_file():
        raise UsageError(
            "kernels need a system to be tried with"
            if image is None
            else f"{image}: no such image",
            hint="--image FILE: an image whose root file system the kernels mount",
        )
    return image


def _files(paths: Sequence[Path], *patterns: str) -> list[Path]:
    from tegu.errors import UsageError

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted({p for pattern in patterns for p in path.glob(pattern)})
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{path} does not exist")
    return found


def _end(text: str, found: Collection[str]) -> str:
    """Return the candidate that `text` names."""
    from tegu.errors import UsageError

    name = text if text in found else Path(text).name
    if name not in found:
        there = ", ".join(found) or "none"
        raise UsageError(f"there is no {text} to choose from", hint=f"there are: {there}")
    return name


def _in_order(good: str, bad: str, ordered: Sequence[str]) -> tuple[str, str]:
    from tegu.errors import UsageError

    if ordered.index(good) > ordered.index(bad):
        raise UsageError(
            f"the good end {good} is newer than the bad one {bad}",
            hint="to find what mended it, swap the two and turn the test round (`! COMMAND`)",
        )
    return good, bad
