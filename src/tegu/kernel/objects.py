"""Does a changed tree compile? Only the objects of the files that were touched are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.kernel.build import LOGS, kbuild_of
from tegu.kernel.fragments import merged_text
from tegu.kernel.kbuild import Kbuild
from tegu.kernel.toolchain import require_toolchain

if TYPE_CHECKING:
    from tegu.kernel.recipe import Recipe
    from tegu.store import Store

__all__ = ["Objects", "build_objects", "is_kernel"]

_OUT = "our configuration does not build it"
_QUERY_FILE = ".tegu-objects.mk"
_QUERY = """\
srctree := .
objtree := .
include include/config/auto.conf
include scripts/Kbuild.include
obj := $(D)
src := $(D)
include $(firstword $(wildcard $(D)/Kbuild $(D)/Makefile))
with-parts = $(1) $($(1:.o=-y)) $($(1:.o=-objs)) $($(1:.o=-m))
.PHONY: tegu-objects
tegu-objects:
\t@echo 'tegu-has: $(foreach o,$(obj-y) $(obj-m) $(lib-y) $(lib-m),$(call with-parts,$(o)))'
"""
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
    log = store.small(LOGS, f"pick-{os.getpid()}.log")
    kbuild = kbuild_of(recipe, tree, store, timestamp=timestamp, jobs=jobs, log=log)
    tell("configure")
    kbuild.configure(Path(fragment.name))
    tell("prepare")
    kbuild.make("prepare", say=say)
    names = {p: f"{p.rpartition('.')[0]}.o" for p in sources}
    wanted = _configured(kbuild, names.values())
    left |= {p: _OUT for p, name in names.items() if name not in wanted}
    built = [name for name in names.values() if name in wanted]
    if built:
        tell(f"compile {' '.join(built)}")
        kbuild.make(*built)
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


def _configured(kbuild: Kbuild, objects: Iterable[str]) -> set[str]:
    """Return those of `objects` that the configuration builds.

    make would compile any file that is asked for by name; so the Makefiles are read (by make) down
    to each, as Documentation/kbuild/makefiles.rst has them: a directory's lists of objects, parts
    of composite ones, and directories below.
    """
    (kbuild.tree / _QUERY_FILE).write_text(_QUERY)
    known: dict[str, frozenset[str]] = {}

    def listed(directory: str) -> frozenset[str]:
        if directory not in known:
            text = kbuild.make("-s", "-f", _QUERY_FILE, f"D={directory}", "tegu-objects")
            words = (line.partition(":")[2] for line in text.splitlines() if "tegu-has:" in line)
            known[directory] = frozenset(" ".join(words).split())
        return known[directory]

    def reached(directory: str, rest: str) -> bool:
        if rest in (entries := listed(directory)):
            return True
        parts = rest.split("/")
        below = (("/".join(parts[:n]), "/".join(parts[n:])) for n in range(1, len(parts)))
        return any(f"{d}/" in entries and reached(f"{directory}/{d}", r) for d, r in below)

    found = set()
    for name in objects:
        parts = name.split("/")
        # The top's lists are spread over several files; what is below is asked.
        depth = 3 if parts[0] == "arch" else 1
        if parts[0] == "arch" and parts[1] != kbuild.recipe.facts.srcarch:
            continue
        if len(parts) <= depth or reached("/".join(parts[:depth]), "/".join(parts[depth:])):
            found.add(name)
    return found
