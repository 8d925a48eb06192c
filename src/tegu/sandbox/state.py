"""Where what outlives a box is kept: guest kernels, root images, and the memory of saved machines.

Root's supervisor keeps it in /var/lib/tegu/sandbox, a user's in $XDG_STATE_HOME/tegu/sandbox;
TEGU_SANDBOX_STATE names another place. It is the one part of the host that a supervisor may write
to, and no box sees it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tegu.errors import SandboxError

__all__ = ["appear", "locked", "make_state", "need_room", "scratch_file", "state_directory"]


def state_directory() -> Path:
    """Return the directory's path; it may not be there yet."""
    named = os.environ.get("TEGU_SANDBOX_STATE")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/tegu/sandbox")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(base) / "tegu/sandbox"


def make_state(path: Path) -> Path:
    """Make the directory, for its owner only. Raises SandboxError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise SandboxError(
            f"cannot make {path}: {e.strerror}", hint="TEGU_SANDBOX_STATE names another place"
        ) from e
    return path


@contextmanager
def locked(directory: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of a directory; waits for whoever holds it (flock(2))."""
    fd = os.open(directory / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def appear(path: Path) -> Iterator[Path]:
    """Yield a directory that becomes `path` when the block ends well, and else goes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        _sweep(path.parent)
    fresh = Path(tempfile.mkdtemp(prefix=f".new-{os.getpid()}-", dir=path.parent))
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield fresh
        for entry in fresh.iterdir():
            fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        if path.exists():
            shutil.rmtree(path)
        fresh.rename(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _sweep(directory: Path) -> None:
    """Remove what makers that were killed have left: theirs is locked as long as they live."""
    for left in directory.glob(".new-*"):
        fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
        shutil.rmtree(left, ignore_errors=True)


def need_room(directory: Path, size: int, what: str) -> None:
    """Raise SandboxError unless `size` bytes are free in `directory`: a machine whose memory is a
    file there is killed (SIGBUS) when it runs out."""
    about = os.statvfs(directory)
    free = about.f_bavail * about.f_frsize
    if free < size:
        raise SandboxError(
            f"{what}: {directory} has {free >> 20} MiB free, and {size >> 20} may be needed",
            hint="`tegu sandbox snapshots` lists what `tegu sandbox forget` can remove",
        )


def scratch_file(directory: Path) -> int:
    """Return a descriptor of a file without a name in `directory` (O_TMPFILE, open(2))."""
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
