"""An image's tree: made once for each content, in namespaces that hold the ids boxes have."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, TeguError
from tegu.linux import libc, run_isolated
from tegu.linux.openat import open_in_root
from tegu.process import run
from tegu.sandbox.images.accounts import Account, find_account
from tegu.sandbox.images.layers import apply_layer
from tegu.sandbox.images.layout import Image
from tegu.sandbox.images.packed import Budget, Packed
from tegu.sandbox.inuse import is_free

__all__ = ["Unpacked", "drop_trees", "unpack"]

_MAX_FILES = 2_000_000
_TOP = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}
"""Where boxes mount: every tree has them."""


@dataclass(frozen=True)
class Unpacked:
    """What came of it. `new` says that the content was not here before."""

    account: Account
    left_out: dict[str, int]
    new: bool


def unpack(
    image: Image,
    blobs: Path,
    tree: Path,
    what: str,
    *,
    most: int,
    on_layer: Callable[[int, int], None] = lambda *_: None,
) -> Unpacked:
    """Make `tree`/rootfs of an image's layers if it is not there, and look its user up.

    `most` bounds the bytes unpacked; `on_layer` hears (layer, of how many). It appears whole or not
    at all; what an interrupted call left is removed by the next. Raises TeguError that begins with
    `what`.
    """

    def work(report: Callable[[Any], None]) -> Unpacked:
        return _unpack(image, blobs, tree, what, most, report)

    return run_isolated(work, on_event=lambda told: on_layer(*told))


def drop_trees(trees: list[Path]) -> None:
    """Remove trees that no box uses, whoever their files belong to: out of sight, then for good."""

    def work(_: Callable[[Any], None]) -> None:
        for tree in trees:
            gone = tree.with_name(f".gone-{tree.name}")
            if is_free(tree):
                with suppress(FileNotFoundError):
                    tree.rename(gone)
                if is_free(gone):
                    _remove(gone)
                else:
                    gone.rename(tree)  # a box was faster

    if trees:
        run_isolated(work)


def _unpack(
    image: Image, blobs: Path, tree: Path, what: str, most: int, report: Callable[[Any], None]
) -> Unpacked:
    left_out: Counter[str] = Counter()
    new = not tree.is_dir()
    if new:
        with _appearing(tree) as fresh:
            root = fresh / "rootfs"
            root.mkdir(mode=0o755)
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _apply_all(image, blobs, fd, what, most, report, left_out)
                libc.call("syncfs", fd, what="syncfs")
            finally:
                os.close(fd)
    root_fd = os.open(tree / "rootfs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        account = find_account(root_fd, image.user)
        _make_directory(root_fd, image.cwd)
    except SandboxError as e:
        raise SandboxError(f"{what}: {e.message}") from e
    finally:
        os.close(root_fd)
    return Unpacked(account, dict(left_out), new)


def _apply_all(
    image: Image,
    blobs: Path,
    root: int,
    what: str,
    most: int,
    report: Callable[[Any], None],
    left_out: Counter[str],
) -> None:
    budget = Budget(most, _MAX_FILES)
    for number, layer in enumerate(image.layers, 1):
        report((number, len(image.layers)))
        path = blobs / "sha256" / layer.digest.removeprefix("sha256:")
        about = f"{what}: layer {number} of {len(image.layers)} ({layer.digest[:19]})"
        try:
            left_out.update(apply_layer(root, Packed(path, layer, budget), budget))
        except TeguError as e:
            if "damaged" in e.message:
                path.unlink(missing_ok=True)  # so that it is fetched anew
            reason = e.message.removeprefix("unsupported: ")
            raise type(e)(f"{about}: {reason}", hint=e.hint) from e
        except RecursionError as e:
            raise SandboxError(f"{about}: directories nested too deeply") from e
        except OSError as e:
            if e.filename == str(path):
                raise SandboxError(f"{about}: its file is missing: {e.strerror}") from e
            raise SandboxError(f"{about}: {e.strerror}") from e
    for name, mode in _TOP.items():
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=root)
            os.chmod(name, mode, dir_fd=root)


def _make_directory(root: int, path: str) -> None:
    """Make an image's working directory where no layer has, as other runtimes do."""
    parts = [part for part in path.split("/") if part]
    for n in range(1, len(parts) + 1):
        here, _, name = "/".join(parts[:n]).rpartition("/")
        try:
            parent = open_in_root(root, here or "/", os.O_PATH | os.O_DIRECTORY)
            try:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=parent)
            finally:
                os.close(parent)
        except OSError as e:
            raise SandboxError(f"WorkingDir {path}: {e.strerror}") from e


@contextmanager
def _appearing(tree: Path) -> Iterator[Path]:
    """Yield a new directory that becomes `tree` when the block ends well, and else goes away."""
    for left in tree.parent.glob(".new-*"):
        _remove_unless_held(left)
    for left in tree.parent.glob(".gone-*"):
        if is_free(left):
            _remove(left)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=tree.parent))
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield fresh
        fresh.chmod(0o755)
        fresh.rename(tree)
    except BaseException:
        _remove(fresh)
        raise
    finally:
        os.close(lock)


def _remove_unless_held(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except BlockingIOError:
        return
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    # Python's rmtree holds a descriptor and a stack frame for each level; rm(1) does not.
    run(["rm", "-rf", "--one-file-system", "--", path], timeout=600)
