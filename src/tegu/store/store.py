"""The store: where downloads, unpacked packages, cached trees and images are kept."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tegu.errors import StoreError, VerifyError
from tegu.files import write_atomic

__all__ = ["Incoming", "Store"]

_FORMAT = "tegu store 1\n"


class Incoming:
    """A blob that is arriving. `offset` bytes are already here; write on, or `restart`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("ab")
        self._digest = hashlib.sha256()
        self.offset = 0
        with path.open("rb") as f:
            while chunk := f.read(1 << 20):
                self._digest.update(chunk)
                self.offset += len(chunk)

    def write(self, data: bytes) -> None:
        """Append `data`; raises StoreError when the disk is full."""
        try:
            self._file.write(data)
        except OSError as e:
            raise _disk_error(e, self._path) from e
        self._digest.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Forget what has arrived."""
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.offset = 0

    def _finish(self) -> str:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as e:
            raise _disk_error(e, self._path) from e
        finally:
            self._close()
        return self._digest.hexdigest()

    def _close(self) -> None:
        with suppress(OSError):
            self._file.close()


class Store:
    """A directory with `blobs/`, `partial/`, `locks/`, `tmp/` and one directory per kind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for name in ("blobs", "partial", "locks", "tmp"):
                (root / name).mkdir(parents=True, exist_ok=True)
            stamp = root / "VERSION"
            if not stamp.exists():
                write_atomic(stamp, _FORMAT)
            elif stamp.read_text() != _FORMAT:
                raise StoreError(
                    f"{root} holds another format of store: {stamp.read_text().strip()!r}",
                    hint="name another one with TEGU_STORE, or remove it: all in it can be remade",
                )
        except OSError as e:
            raise _disk_error(e, root) from e

    @classmethod
    def default(cls) -> Store:
        """The store of $TEGU_STORE, else $XDG_CACHE_HOME/tegu, else ~/.cache/tegu."""
        if named := os.environ.get("TEGU_STORE"):
            return cls(Path(named).absolute())
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(cache).absolute() / "tegu")

    # Blobs

    def blob_path(self, sha256: str) -> Path:
        """Return where the blob is, or would be."""
        return self.root / "blobs" / sha256[:2] / sha256

    def blob(self, sha256: str) -> Path | None:
        """Return the path of a blob that is here (its content was verified when it came in)."""
        path = self.blob_path(sha256)
        return path if path.is_file() else None

    @contextmanager
    def incoming(self, sha256: str, size: int) -> Iterator[Incoming]:
        """Receive a blob of `size` bytes.

        It exists only if the block ends cleanly and size and SHA-256 are as announced; else
        VerifyError and the bytes are dropped. On any other exception they stay for a resume.
        """
        partial = self.root / "partial" / sha256
        with self.locked(f"blob-{sha256}"):
            if partial.exists() and partial.stat().st_size > size:
                partial.unlink()
            try:
                incoming = Incoming(partial)
            except OSError as e:
                raise _disk_error(e, partial) from e
            try:
                yield incoming
            except StoreError:
                incoming._close()
                partial.unlink(missing_ok=True)
                raise
            except BaseException:
                incoming._close()
                raise
            try:
                got = incoming._finish()
            except StoreError:
                partial.unlink(missing_ok=True)
                raise
            if got != sha256 or incoming.offset != size:
                partial.unlink(missing_ok=True)
                raise VerifyError(
                    f"expected {size} bytes with SHA-256 {sha256}, got {incoming.offset} bytes "
                    f"with {got}"
                )
            final = self.blob_path(sha256)
            final.parent.mkdir(exist_ok=True)
            partial.rename(final)

    def add_blob(self, source: Path) -> str:
        """Copy the file `source` in and return its SHA-256 (hex)."""
        with source.open("rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        if self.blob(sha256) is None:
            with self.incoming(sha256, source.stat().st_size) as blob, source.open("rb") as f:
                blob.restart()
                while chunk := f.read(1 << 20):
                    blob.write(chunk)
        return sha256

    def drop_blob(self, sha256: str) -> None:
        """Remove a blob (found corrupt, or no longer needed)."""
        self.blob_path(sha256).unlink(missing_ok=True)

    # Results named by a key

    def small(self, kind: str, key: str) -> Path:
        """Return the path of a small file of `kind`; write it with `tegu.files.write_atomic`."""
        directory = self.root / kind
        directory.mkdir(exist_ok=True)
        return directory / key

    def tree(self, kind: str, key: str) -> Path | None:
        """Return the directory `kind/key` if it is here, whole."""
        path = self.root / kind / key
        if not path.is_dir():
            return None
        with suppress(OSError):
            os.utime(path)  # read by gc: when it was last of use
        return path

    @contextmanager
    def new_tree(self, kind: str, key: str) -> Iterator[Path]:
        """Yield a new directory that becomes `kind/key` when the block ends without an exception.

        If another process was faster, its result stays and this one is dropped.
        """
        (self.root / kind).mkdir(exist_ok=True)
        with self.scratch() as temporary:
            tree = temporary / "tree"
            tree.mkdir()
            yield tree
            final = self.root / kind / key
            try:
                tree.rename(final)
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise _disk_error(e, final) from e

    def drop_tree(self, kind: str, key: str) -> None:
        """Remove `kind/key`: first out of sight, then for good."""
        path = self.root / kind / key
        with self.scratch() as temporary, suppress(FileNotFoundError):
            path.rename(temporary / "dropped")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a temporary directory on the store's file system, removed in the end.

        It is held by a lock: what a killed process left behind is found and removed by `sweep`.
        """
        with self.locked("tmp"):
            path = Path(tempfile.mkdtemp(prefix="t", dir=self.root / "tmp"))
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            remove_tree(path)
            os.close(handle)

    def sweep(self) -> int:
        """Remove temporary directories whose process is gone; returns how many."""
        swept = 0
        with self.locked("tmp"):
            for path in (self.root / "tmp").iterdir():
                try:
                    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                except OSError:
                    continue
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(path)
                    swept += 1
                except BlockingIOError:
                    pass
                finally:
                    os.close(handle)
        return swept

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Be a user of the store: nothing is collected meanwhile."""
        with (self.root / "locks" / "users").open("a") as f:
            fcntl.flock(f, fcntl.LOCK_SH)
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only user of the store; waits for the others."""
        with (self.root / "locks" / "users").open("a") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock `name` against other processes and threads; waits for it."""
        with (self.root / "locks" / name).open("a") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def remove_tree(path: Path) -> None:
    """Remove a tree even where its directories lack the write bit."""

    def unlock(function: object, name: str, info: object) -> None:
        target = Path(name)
        with suppress(OSError):
            target.parent.chmod(0o700)
            if target.is_dir() and not target.is_symlink():
                target.chmod(0o700)
                shutil.rmtree(target, ignore_errors=True)
            else:
                target.unlink(missing_ok=True)

    shutil.rmtree(path, onerror=unlock)


def _disk_error(e: OSError, path: Path) -> StoreError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left on the disk that holds {path}",
            hint="free some with `tegu gc`, or name another place with TEGU_STORE",
        )
    return StoreError(f"{path}: {e.strerror}")
