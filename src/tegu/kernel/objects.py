"""Does a changed tree compile? Only the objects of the files that were touched are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import BuildError
from tegu.kernel.build import CCACHE
from tegu.kernel.fragments import merged_text
from tegu.kernel.kbuild import Kbuild
from tegu.kernel.toolchain import require_toolchain

if TYPE_CHECKING:
    from tegu.kernel.recipe import Recipe
    from tegu.store import Store

__all__ = ["Objects", "build_objects", "is_kernel"]

_KBUILD = ("Makefile", "Kconfig", "scripts/Makefile.build")


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects that were `built`, and the touched files `left` out, each with the reason."""

    built: tuple[str, ...]
    left: dict[str, str]


def is_kernel(tree: Path) -> bool:
    """Say whether `tree` is built by the kernel's build system."""
    return all((tree / name).is_file() for name in _KBUILD)


def build_objects(
    recipe: Recipe,
    store: Store,
    tree: Path,
    paths: Iterable[str],
    *,
    timestamp: int,
    jobs: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Objects:
    """Configure the kernel in `tree` as `recipe` says, and make the objects of `paths`.

    Options that this version of the kernel does not know are passed over: the recipe is for another
    one. `timestamp` is what the objects say of their time, in seconds since the epoch. Raises
    UnsupportedError when tools are missing, BuildError with the first error when one does not
    compile.
    """
    tell = say or (lambda _: None)
    touched = sorted(set(paths))
    if not is_kernel(tree):
        return Objects((), dict.fromkeys(touched, "not a kernel tree"))
    left = {p: reason for p in touched if (reason := _reason(tree, p))}
    sources = [p for p in touched if p not in left]
    if not sources:
        return Objects((), left)
    require_toolchain()
    fragment = tree / ".tegu-fragment"
    fragment.write_text(merged_text(recipe.options))
    log = store.small("kernel-logs-1", f"pick-{os.getpid()}.log")
    log.unlink(missing_ok=True)
    kbuild = Kbuild(
        recipe,
        tree,
        timestamp=timestamp,
        cache=Path(os.environ.get("CCACHE_DIR") or store.root / CCACHE),
        jobs=jobs or os.cpu_count() or 1,
        log=log,
    )
    tell("configure")
    kbuild.configure(Path(fragment.name))
    tell("prepare")
    kbuild.make("prepare", say=say)
    built = []
    for path in sources:
        name = f"{path.rpartition('.')[0]}.o"
        tell(f"compile {path}")
        try:
            kbuild.make(name)
        except BuildError as e:
            if not _no_rule(e.message, name):
                raise
            left[path] = "our configuration does not build it"
        else:
            built.append(name)
    log.unlink(missing_ok=True)
    return Objects(tuple(built), left)


def _reason(tree: Path, path: str) -> str:
    """Return why nothing is compiled of `path` by itself; empty when something is."""
    if not (tree / path).is_file():
        return "removed"
    if path.endswith(".h"):
        return "a header: compiled with what includes it"
    if path.startswith(("Documentation/", "tools/", "samples/")):
        return "not part of the kernel"
    if not path.endswith((".c", ".S")) or path.endswith(".lds.S"):
        return "not a source of the compiler"
    return ""


def _no_rule(message: str, name: str) -> bool:
    """Say whether make knows no way to `name`, or to its directory: it is configured out."""
    return "No rule to make target" in message and (f"'{name}'" in message)
