"""The EFI system partition of a running machine: found, mounted while needed, written safely."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tegu.errors import BuildError
from tegu.process import CommandError, run

__all__ = ["MOUNT_POINTS", "free_space", "locked_esp", "write_file"]

MOUNT_POINTS = ("efi", "boot/efi")
_LOCK = "run/tegu-kernel.lock"


@contextmanager
def locked_esp(root: Path, partuuid: str) -> Iterator[Path]:
    """Yield the directory where the ESP is mounted, for one caller at a time.

    When it is mounted nowhere, it is for as long as the block runs, in a private directory. Raises
    BuildError when it cannot be.
    """
    lock = root / _LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for name in MOUNT_POINTS:
            if (root / name).is_mount():
                yield root / name
                return
        with tempfile.TemporaryDirectory(prefix="tegu-esp-", dir=root / "run") as directory:
            try:
                run(["mount", "-t", "vfat", "-o", "umask=0077", f"PARTUUID={partuuid}", directory])
            except CommandError as e:
                raise BuildError(
                    f"cannot mount the ESP: {e.message}", hint=f"look for {partuuid} in lsblk -f"
                ) from e
            try:
                yield Path(directory)
            finally:
                run(["umount", directory])


def free_space(esp: Path) -> int:
    """Return the free bytes of the ESP."""
    info = os.statvfs(esp)
    return info.f_bavail * info.f_frsize


def write_file(esp: Path, name: str, data: bytes) -> bool:
    """Write a file of the ESP, whole or not at all; returns False when it was the same already.

    FAT has no modes, so this is not `tegu.files.write_atomic`. Raises BuildError when the ESP is
    full; what was there is left as it was.
    """
    path = esp / name
    try:
        if path.read_bytes() == data:
            return False
    except FileNotFoundError:
        pass
    temporary = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.rename(path)
        _sync(path.parent)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink()
        if e.errno == errno.ENOSPC:
            raise BuildError(
                f"the ESP is full: {name} needs {-(-len(data) >> 20)} MiB"
                f" and {free_space(esp) >> 20} MiB are free; what was there is unchanged",
                hint="remove a kernel: tegu host kernel --list, then --remove VERSION",
            ) from e
        raise BuildError(f"cannot write {name} to the ESP: {e.strerror}") from e
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return True


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
