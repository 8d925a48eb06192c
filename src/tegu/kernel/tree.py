"""From a source package to a patched kernel tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path

from tegu.errors import BuildError, VerifyError
from tegu.kernel.patches import apply_patch, read_series
from tegu.kernel.recipe import Recipe
from tegu.packages import SourcePackage
from tegu.process import CommandError, require, run

__all__ = ["make_tree", "source_time"]

_MINUTES = 60


def make_tree(
    recipe: Recipe,
    package: SourcePackage,
    files: Mapping[str, Path],
    tree: Path,
    say: Callable[[str], None],
) -> None:
    """Unpack the source package into `tree` and apply its patches, then ours.

    `files` has the verified files of the package. Raises BuildError that names the patch, the file
    and the hunk when one does not apply; the distribution's patches come first.
    """
    say("unpack the source")
    tree.mkdir()
    _unpack(files[package.file(".orig.tar.xz").name], tree, strip=1)
    _unpack(files[package.file(".debian.tar.xz").name], tree, strip=0)
    queue = tree / "debian" / "patches"
    names = read_series(queue / "series")
    for name in names:
        say(f"patch {name.rpartition('/')[2]}")
        apply_patch(queue / name, tree)
    for patch in recipe.patches:
        say(f"patch {patch.path.name}")
        try:
            apply_patch(patch.path, tree)
        except BuildError as e:
            raise BuildError(
                e.message,
                hint=f"it is for {recipe.package} as it was; compare with {recipe.version} "
                "and make the patch again, or drop it from the series",
            ) from e


def _unpack(archive: Path, tree: Path, *, strip: int) -> None:
    # The archive is verified; tar refuses names that lead out of the directory by itself.
    require("xz", package="xz-utils")
    try:
        run(
            ["tar", "-xJf", archive, f"--strip-components={strip}", "--no-same-owner", "-C", tree],
            timeout=30 * _MINUTES,
        )
    except CommandError as e:
        if "No space left" in e.message:
            raise BuildError(
                f"no space to unpack {archive.name} (a kernel build needs about 6 GB)",
                hint="free some with `tegu gc`, or name another place with TEGU_STORE",
            ) from e
        raise


def source_time(tree: Path) -> int:
    """Return when the source package was made (deb-changelog(5)), in seconds since the epoch."""
    path = tree / "debian" / "changelog"
    with path.open(encoding="utf-8", errors="replace") as f:
        for line in f:
            match = re.match(r" -- .*?  (\S.*)$", line)
            if match:
                try:
                    return int(parsedate_to_datetime(match[1]).timestamp())
                except ValueError as e:
                    raise VerifyError(f"{path.name}: no date: {match[1]!r}") from e
    raise VerifyError("debian/changelog of the source has no entry")
