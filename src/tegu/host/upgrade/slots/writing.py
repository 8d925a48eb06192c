"""Writing a slot: unusable first, whole last.

The initrd takes a slot only when the top of its hash tree is the root hash that it was given. So
the top is zeroed before anything else is written, and written when all else has been read back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from tegu.boot.slots import FILES, SlotFile, SlotImage
from tegu.boot.verity import HEAD, hash_tree, top_matches
from tegu.errors import UpgradeError, VerifyError
from tegu.host.upgrade.slots.machine import opened_device
from tegu.host.upgrade.slots.source import Source

__all__ = ["read_boot", "write_slot"]

_STEP = 1 << 20
Say = Callable[[str], None]


def write_slot(
    image: SlotImage, source: Source, root: Path, tree: Path, say: Say = lambda _: None
) -> None:
    """Write the slot image at `source` to the partitions `root` and `tree`.

    Raises UpgradeError when it does not fit (then nothing was written), FetchError, VerifyError
    when what came or what was read back is not what `image` says; the slot is unusable then.
    """
    for path, file in ((root, image.root), (tree, image.tree)):
        with opened_device(path, os.O_RDONLY) as fd:
            room = os.lseek(fd, 0, os.SEEK_END)
        if room < file.size:
            raise UpgradeError(
                f"{image.version} does not fit its slot: {file.file} has {file.size >> 20} MiB,"
                f" the partition {room >> 20}",
                hint="nothing was changed; a disk with larger slots is needed (image.slot_size)",
            )
    with opened_device(tree, os.O_WRONLY) as fd:
        _write(fd, bytes(HEAD), 0)
        _sync(fd)
    say(f"writing the root, {image.root.size >> 20} MiB")
    with opened_device(root, os.O_WRONLY) as fd, source.opened(FILES["root"]) as data:
        _stream(data, fd, image.root)
    with opened_device(tree, os.O_RDWR) as fd:
        with source.opened(FILES["tree"]) as data:
            head = _stream(data, fd, image.tree, keep=HEAD)
        if not top_matches(head, image.verity):
            raise VerifyError(f"{FILES['tree']} is not the hash tree of {image.version}")
        say("reading it back")
        _compare(image, root, fd, head)
        _write(fd, head, 0)
        _sync(fd)


def read_boot(image: SlotImage, source: Source) -> bytes:
    """Return the unified image; raises VerifyError when it is not what `image` says."""
    with source.opened(FILES["boot"]) as data:
        found = data.read(image.boot.size + 1)
    if len(found) != image.boot.size or hashlib.sha256(found).hexdigest() != image.boot.sha256:
        raise VerifyError(f"{FILES['boot']} is not what {image.version}'s description says")
    return found


def _stream(data: IO[bytes], fd: int, file: SlotFile, *, keep: int = 0) -> bytes:
    """Copy `data` to the device, but its first `keep` bytes, which are returned."""
    digest, at, head = hashlib.sha256(), 0, b""
    while at < file.size:
        step = data.read(min(_STEP, file.size - at))
        if not step:
            raise VerifyError(f"{file.file} ended after {at} of {file.size} bytes")
        digest.update(step)
        if at == 0:
            while len(step) < keep:
                more = data.read(keep - len(step))
                if not more:
                    raise VerifyError(f"{file.file} ended after {len(step)} of {file.size} bytes")
                digest.update(more)
                step += more
            head = step[:keep]
            _write(fd, step[keep:], keep)
        else:
            _write(fd, step, at)
        at += len(step)
    if data.read(1) or digest.hexdigest() != file.sha256:
        raise VerifyError(f"{file.file} is not what its description says")
    _sync(fd)
    return head


def _compare(image: SlotImage, root: Path, tree: int, head: bytes) -> None:
    """Read from the disk what was written, and make its hash tree again."""
    with opened_device(root, os.O_RDONLY) as fd:
        with suppress(OSError):
            for each in (fd, tree):
                os.posix_fadvise(each, 0, 0, os.POSIX_FADV_DONTNEED)
        with os.fdopen(os.dup(fd), "rb", buffering=_STEP) as f:
            f.seek(0)
            salt = bytes.fromhex(image.verity.salt)
            verity, again = hash_tree(f, image.root.size, salt)
    if verity != image.verity:
        raise VerifyError(
            f"the root reads back with the root hash {verity.root_hash}, not the one written",
            hint="the disk does not keep what is written to it",
        )
    written = head + os.pread(tree, len(again) - HEAD, HEAD)
    if written != again:
        raise VerifyError(
            "the hash tree does not read back as written, or is not that of the root",
            hint="try again; if it stays so, the disk or the image is damaged",
        )


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as e:
        raise UpgradeError(f"cannot write to the slot: {e.strerror}") from e


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        try:
            done = os.pwrite(fd, view, at)
        except OSError as e:
            raise UpgradeError(f"cannot write to the slot: {e.strerror}") from e
        view, at = view[done:], at + done
