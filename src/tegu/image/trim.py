"""Remove what the definition does not want: paths, locales, kernel modules, setuid bits."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from tegu.definition import Definition
from tegu.errors import BuildError
from tegu.image.derived import MODULES, derive
from tegu.image.sandbox import Sandbox
from tegu.store import Store

__all__ = ["trim"]

_LOCALE_DIRECTORIES = ("usr/share/locale", "usr/share/man")
_MANUAL_SECTION = re.compile(r"man\d$")


def trim(store: Store, box: Sandbox, definition: Definition) -> None:
    """Apply `[trim]`, `kernel.keep_modules` and `hardening.setuid` to the tree."""
    patterns = [p.lstrip("/") for p in definition.trim.paths]
    keep = [p.lstrip("/") for p in definition.trim.keep]
    if patterns:
        _remove(box.root, patterns, keep)
        _teach_dpkg(box.root, definition.trim.paths, definition.trim.keep)
    if definition.trim.locales is not None:
        _trim_locales(box.root, definition.trim.locales)
    if definition.kernel.keep_modules:
        _trim_modules(store, box, definition.kernel.keep_modules)
    if definition.hardening.setuid is not None:
        _trim_setuid(box.root, {p.lstrip("/") for p in definition.hardening.setuid})


def _kept(path: str, keep: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, k) for k in keep)


def _remove(root: Path, patterns: Sequence[str], keep: Sequence[str]) -> None:
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            _remove_one(root, path, keep)


def _remove_one(root: Path, path: Path, keep: Sequence[str]) -> bool:
    """Remove a path unless it or something below is kept; returns whether it is gone."""
    if _kept(os.fspath(path.relative_to(root)), keep):
        return False
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    if not keep:
        shutil.rmtree(path)
        return True
    gone = [_remove_one(root, child, keep) for child in sorted(path.iterdir())]
    if all(gone):
        path.rmdir()
    return all(gone)


def _teach_dpkg(root: Path, patterns: Sequence[str], keep: Sequence[str]) -> None:
    """Have dpkg leave out on upgrades what was removed here (dpkg(1), --path-exclude)."""
    lines = ["# What the image was trimmed of stays away when packages are upgraded."]
    for pattern in patterns:
        lines += [f"path-exclude={pattern}", f"path-exclude={pattern.rstrip('/')}/*"]
    lines += [f"path-include={pattern}" for pattern in keep]
    target = root / "etc/dpkg/dpkg.cfg.d/tegu-trim"
    if target.parent.is_dir():
        target.write_text("\n".join(lines) + "\n")
        target.chmod(0o644)


def _trim_locales(root: Path, wanted: Sequence[str]) -> None:
    names = set()
    for locale in wanted:
        base = locale.split(".")[0]
        names |= {locale, base, base.split("_")[0]}
    for directory in _LOCALE_DIRECTORIES:
        for path in sorted((root / directory).glob("*")):
            if path.is_dir() and path.name not in names and not _MANUAL_SECTION.match(path.name):
                shutil.rmtree(path)


def _modules(tree: Path) -> Iterator[Path]:
    for path in sorted(tree.rglob("*.ko*")):
        if path.is_file():
            yield path


def _trim_modules(store: Store, box: Sandbox, wanted: Sequence[str]) -> None:
    """Keep the named modules, those under named directories, and what they depend on."""
    derive(store, box, steps=[MODULES])
    base = box.root / "usr/lib/modules"
    for tree in sorted(base.iterdir()) if base.is_dir() else []:
        dependencies = _dependencies(tree)
        by_name = {_module_name(path): path for path in dependencies}
        keep: set[str] = set()
        for want in wanted:
            if "/" in want:
                keep |= {p for p in dependencies if p.startswith(want.rstrip("/") + "/")}
            elif (found := by_name.get(want.replace("-", "_"))) is not None:
                keep.add(found)
        # What a kept module needs stays, all the way down (modules.dep lists it flat).
        keep |= {need for path in tuple(keep) for need in dependencies[path]}
        for path in _modules(tree):
            if os.fspath(path.relative_to(tree)) not in keep:
                path.unlink()
        for directory, _, _ in os.walk(tree, topdown=False):
            if not os.listdir(directory):  # noqa: PTH208
                Path(directory).rmdir()


def _module_name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _dependencies(tree: Path) -> dict[str, list[str]]:
    """Read modules.dep (modules.dep(5)): path of each module to the paths that it needs."""
    listing = tree / "modules.dep"
    if not listing.is_file():
        raise BuildError(f"{tree.name} has no modules.dep: its package was not configured")
    found = {}
    for line in listing.read_text().splitlines():
        path, _, needs = line.partition(":")
        found[path] = needs.split()
    return found


def _trim_setuid(root: Path, allowed: set[str]) -> None:
    for directory in ("usr", "opt", "var"):
        for parent, _, files in os.walk(root / directory):
            for name in files:
                path = Path(parent) / name
                info = path.lstat()
                if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o6000:
                    continue
                if os.fspath(path.relative_to(root)) not in allowed:
                    path.chmod(stat.S_IMODE(info.st_mode) & 0o1777)
