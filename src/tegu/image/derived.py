"""What is computed from a whole tree, once: linker cache, certificate bundle, databases.

Each step names its inputs and outputs; the outputs are kept in the store under the digest of the
inputs, so that only a change of an input runs the program again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tegu.image.certificates import make_bundle
from tegu.image.sandbox import Sandbox
from tegu.image.unpack import content_hash
from tegu.store import Store

__all__ = ["MODULES", "STEPS", "Step", "derive"]

KIND = "derived-1"


@dataclass(frozen=True)
class Step:
    """A program that turns `inputs` (files, directories) into `outputs`.

    All paths are relative to the tree; outputs may be shell globs, and are no inputs. The step is
    left out where `program` or the first input is missing. `cached` steps are worth keeping in the
    store; the others are quick. `shortcut` does the same as the program in less time, or returns
    False without having done anything.
    """

    name: str
    program: str
    argv: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cached: bool = True
    shortcut: Callable[[Sandbox], bool] | None = field(default=None, repr=False)


MODULES = Step(
    "module index",
    "usr/sbin/depmod",
    (
        "/bin/sh",
        "-ec",
        'for tree in /usr/lib/modules/*/; do depmod "$(basename "$tree")"; done',
    ),
    ("usr/lib/modules", "usr/sbin/depmod", "usr/bin/kmod", "etc/depmod.d"),
    tuple(
        f"usr/lib/modules/*/modules.{name}"
        for name in (
            "alias",
            "alias.bin",
            "builtin.alias.bin",
            "builtin.bin",
            "dep",
            "dep.bin",
            "devname",
            "softdep",
            "symbols",
            "symbols.bin",
            "weakdep",
        )
    ),
)

STEPS = (
    MODULES,
    Step(
        "certificates",
        "usr/sbin/update-ca-certificates",
        ("/usr/sbin/update-ca-certificates", "--fresh"),
        (
            "usr/share/ca-certificates",
            "usr/local/share/ca-certificates",
            "etc/ca-certificates.conf",
            "etc/ca-certificates",
            "usr/sbin/update-ca-certificates",
            "usr/bin/openssl",
        ),
        ("etc/ssl/certs",),
        shortcut=make_bundle,
    ),
    Step(
        "hardware database",
        "usr/bin/systemd-hwdb",
        ("/usr/bin/systemd-hwdb", "--usr", "--strict", "update"),
        ("usr/lib/udev/hwdb.d", "etc/udev/hwdb.d", "usr/bin/systemd-hwdb"),
        ("usr/lib/udev/hwdb.bin",),
    ),
    Step(
        "message catalogue",
        "usr/bin/journalctl",
        ("/usr/bin/journalctl", "--update-catalog"),
        ("usr/lib/systemd/catalog", "etc/systemd/catalog", "usr/bin/journalctl"),
        ("var/lib/systemd/catalog/database",),
    ),
    Step(
        "linker cache",
        "usr/sbin/ldconfig",
        ("/usr/sbin/ldconfig",),
        ("usr/lib", "etc/ld.so.conf", "etc/ld.so.conf.d"),
        ("etc/ld.so.cache",),
        cached=False,
    ),
)


def derive(store: Store, box: Sandbox, *, steps: Sequence[Step] = STEPS) -> list[str]:
    """Run every step whose result the store lacks; returns the names of those that were run."""
    ran = []
    for step in steps:
        if not (box.root / step.program).is_file() or not (box.root / step.inputs[0]).exists():
            continue
        if not step.cached:
            box.run(step.argv)
            continue
        key = _digest(box.root, step)
        kept = store.tree(KIND, key)
        if kept is None:
            _clear(box.root, step)
            if step.shortcut is None or not step.shortcut(box):
                box.run(step.argv)
            ran.append(step.name)
            with store.new_tree(KIND, key) as tree:
                _copy_outputs(box.root, tree, step)
        elif not _same(box.root, kept, step):
            _clear(box.root, step)
            _copy_outputs(kept, box.root, step)
    return ran


def _expand(root: Path, name: str) -> list[Path]:
    return sorted(root.glob(name)) if "*" in name else [root / name]


def _files(root: Path, paths: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for path in (p for name in paths for p in _expand(root, name)):
        if path.is_dir() and not path.is_symlink():
            for directory, directories, files in os.walk(path):
                directories.sort()
                links = [d for d in directories if (Path(directory) / d).is_symlink()]
                found += [Path(directory) / f for f in sorted([*files, *links])]
        elif path.is_symlink() or path.exists():
            found.append(path)
    return found


def _describe(root: Path, paths: Sequence[str], *, without: Sequence[str] = ()) -> str:
    lines = []
    left_out = set(_files(root, without))
    for path in _files(root, paths):
        if path in left_out:
            continue
        info = path.lstat()
        what = str(path.readlink()) if stat.S_ISLNK(info.st_mode) else f"{content_hash(path)}"
        lines.append(f"{path.relative_to(root)}\0{stat.S_IMODE(info.st_mode):o}\0{what}\n")
    return "".join(lines)


def _digest(root: Path, step: Step) -> str:
    text = f"{step!r}\n{_describe(root, step.inputs, without=step.outputs)}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _same(root: Path, kept: Path, step: Step) -> bool:
    return _describe(root, step.outputs) == _describe(kept, step.outputs)


def _clear(root: Path, step: Step) -> None:
    for path in _files(root, step.outputs):
        path.unlink()


def _copy_outputs(source: Path, target: Path, step: Step) -> None:
    for path in _files(source, step.outputs):
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to, follow_symlinks=False)
