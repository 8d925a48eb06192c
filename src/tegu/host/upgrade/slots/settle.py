"""What a new root needs of the parts that it shares with the old one: accounts, and places in /var.

/etc is an overlay: a file that was changed on the machine hides the one of every later image. For
the lists of accounts, which nearly every machine changes, the image's new entries are added. /var
is the machine's own: directories that a new image brings are made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tegu.process import run

__all__ = ["add_accounts", "bring_directories", "image_view"]

_LISTS = ("passwd", "group", "shadow", "gshadow")
_NUMBERED = ("passwd", "group")


@contextmanager
def image_view(root: Path = Path("/")) -> Iterator[Path]:
    """Yield where the image is seen as it is, without what is mounted over it."""
    with tempfile.TemporaryDirectory(prefix="tegu-image-", dir=root / "run") as place:
        run(["mount", "--bind", root, place])
        try:
            yield Path(place)
        finally:
            run(["umount", place])


def add_accounts(image: Path, etc: Path) -> list[str]:
    """Add to the lists in `etc` what those of the image's /etc have more; returns what was done.

    An entry whose number another name has already is left out, and said.
    """
    said = []
    for name in _LISTS:
        try:
            theirs = (image / name).read_text().splitlines()
            ours = (etc / name).read_text().splitlines()
        except FileNotFoundError:
            continue
        names = {line.partition(":")[0] for line in ours}
        numbers = {line.split(":")[2] for line in ours if line.count(":") > 2}
        added = []
        for line in theirs:
            fields = line.split(":")
            if fields[0] in names or len(fields) < 3:
                continue
            if name in _NUMBERED and fields[2] in numbers:
                said.append(f"{name}: {fields[0]} has number {fields[2]}, which is taken")
                continue
            added.append(line)
        if added:
            _rewrite(etc / name, "\n".join([*ours, *added]) + "\n")
            said += [f"{name}: {line.partition(':')[0]}" for line in added if name in _NUMBERED]
    return said


def _rewrite(path: Path, text: str) -> None:
    info = path.stat()
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as f:
            f.write(text)
            f.flush()
            os.fchmod(f.fileno(), info.st_mode & 0o7777)
            os.fchown(f.fileno(), info.st_uid, info.st_gid)
            os.fsync(f.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def bring_directories(image: Path, var: Path) -> list[str]:
    """Copy directories of the image's /var that `var` has not, with what is in them.

    What is there stays as it is. Returns their paths, relative to /var.
    """
    made: list[str] = []
    _bring(image, var, "", made)
    return made


def _bring(image: Path, var: Path, below: str, made: list[str]) -> None:
    with os.scandir(image / below) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    for name in names:
        path = f"{below}/{name}" if below else name
        if path == "lib/dpkg":
            continue  # the image's own is mounted there
        target = var / path
        if target.is_symlink():
            continue
        if target.is_dir():
            _bring(image, var, path, made)
        elif not target.exists():
            fresh = target.with_name(f".{name}.tegu-new")
            shutil.rmtree(fresh, ignore_errors=True)
            run(["cp", "-a", image / path, fresh], timeout=3600)
            fresh.rename(target)
            made.append(path)
