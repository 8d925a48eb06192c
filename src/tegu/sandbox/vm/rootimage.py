"""A template as a disk: an EROFS image (erofs.docs.kernel.org), made once and shared by all guests.

Not a shared directory: QEMU cannot save a machine that has one mounted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tegu.errors import SandboxError, UnsupportedError, UsageError
from tegu.process import CommandError, run
from tegu.sandbox.template import Template

__all__ = ["MAX_HOST", "make_image", "tree_key"]

MAX_HOST = 2 * 2**30
"""Bytes of this machine's /usr up to which it is a template for microVMs."""
_FORMAT = 1


def tree_key(template: Template) -> str:
    """Return a hash of what a template holds: every path with its owner, mode, size and time.

    Raises UsageError when it is the host's own tree and too large for a disk of its own.
    """
    digest = hashlib.sha256(f"erofs {_FORMAT} {template.skeleton!r}\n".encode())
    total = 0
    trees = [("", template.root)] if template.root is not None else []
    trees += [(inside, Path(outside)) for inside, outside in template.mounts]
    for inside, top in trees:
        for path, about in _walk(top):
            total += about.st_blocks * 512
            line = (
                f"{inside}/{path} {about.st_mode:o} {about.st_uid} {about.st_gid} {about.st_size}"
                f" {about.st_mtime_ns} {about.st_ino}\n"
            )
            digest.update(line.encode(errors="surrogateescape"))
    if template.root is None and total > MAX_HOST:
        raise UsageError(
            f"template host: /usr holds {total / 2**30:.1f} GiB, too much for a microVM's disk"
            f" (at most {MAX_HOST / 2**30:.0f} GiB)",
            hint="name a directory with a root file system: --template DIR",
        )
    return digest.hexdigest()


def _walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    if not top.is_dir():
        yield "", top.stat()
        return
    pending = [""]
    while pending:
        here = pending.pop()
        with os.scandir(top / here) as found:
            entries = sorted(found, key=lambda e: e.name)
        for entry in entries:
            path = f"{here}{entry.name}"
            about = entry.stat(follow_symlinks=False)
            yield path, about
            if stat.S_ISDIR(about.st_mode):
                pending.append(path + "/")


def make_image(template: Template, target: Path) -> None:
    """Write the template's image to `target`. Raises UnsupportedError without mkfs.erofs."""
    program = shutil.which("mkfs.erofs", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if program is None:
        raise UnsupportedError("mkfs.erofs is not installed", hint="install erofs-utils")
    options = ["--quiet", "-x1"]
    try:
        if template.root is not None:
            run([program, *options, str(target), str(template.root)], timeout=1800)
            return
        with tempfile.TemporaryDirectory(prefix=".tree-", dir=target.parent) as name:
            _assemble(template, Path(name))
            run([program, *options, str(target), name], timeout=1800)
    except CommandError as e:
        raise SandboxError(f"template {template.name}: its disk cannot be made: {e.message}") from e


def _assemble(template: Template, top: Path) -> None:
    """Put the skeleton and copies (hard links where they can be) of the mounts under `top`."""
    for path, kind, what in template.skeleton:
        place = top / path.lstrip("/")
        if kind == "dir":
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(int(what, 8))
        elif kind == "link":
            place.symlink_to(os.fsdecode(what))
        else:
            place.write_bytes(what.encode() if isinstance(what, str) else what)
    for inside, outside in template.mounts:
        place = top / inside.lstrip("/")
        if Path(outside).is_dir():
            shutil.copytree(
                outside, place, symlinks=True, dirs_exist_ok=True, copy_function=_linked
            )
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            _linked(outside, str(place))


def _linked(source: str, target: str, *, follow_symlinks: bool = True) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=follow_symlinks)
    return target
