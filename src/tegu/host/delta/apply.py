"""The new tree, made of the old one and a delta."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import UpgradeError, VerifyError
from tegu.host.delta.build import build
from tegu.host.delta.container import PlanItem, Stream, open_delta, parse_plan, read_header
from tegu.host.delta.patch import Patch, patched
from tegu.host.delta.recode import decode, encode, require_all
from tegu.host.delta.table import Record, Table, TreeDigest, parse_table, read_table
from tegu.linux import libc

__all__ = ["apply"]

Say = Callable[[str], None]

_CHUNK = 1 << 18
_MAX_TABLE = 1 << 28
_MAX_DECODED = 1 << 30


def apply(base: Path, delta: Path, target: Path, *, say: Say = lambda _: None) -> TreeDigest:
    """Make the tree that `delta` leads to in the new directory `target`; returns its digest.

    `base` is the old tree: a directory, or a file system mounted there, which nothing writes to
    meanwhile (its mount points show empty). It is read whole and must be the tree that the delta
    was made from. `target` appears when all of it is there, checked and on the disk.

    Raises VerifyError when the delta is damaged, made up, or not what its hashes say; UpgradeError
    when it belongs to another tree, `target` exists, or the disk is full. Nothing is left behind.
    """
    if os.path.lexists(target):
        raise UpgradeError(f"{target} is there already", hint="a tree is made in a new directory")
    with ExitStack() as stack:
        file = stack.enter_context(open_delta(delta))
        header = read_header(file, delta.stat().st_size)
        old = read_table(base, say)
        found = old.digest()
        if found.sha256 != header.old:
            raise UpgradeError(
                f"the delta is for the tree {header.old[:16]}, {base} has {found.sha256[:16]}",
                hint="take the delta that begins with this tree, or the whole image",
            )
        streams = {n: Stream(file, n, place) for n, place in header.streams.items()}
        plan = parse_plan(streams["plan"].rest(), header.contents, len(old.records))
        require_all(item.recode for item in plan)
        work = _Work(base, old, streams, iter(plan))
        table = work.table(header.new)
        _room(target, table.digest().size)
        say(f"making {len(table.records)} paths")
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        tree = scratch / "tree"
        tree.mkdir(mode=0o700)
        work.place = os.fsencode(tree)
        build(table, work.place, work.content)
        work.close()
        _to_disk(tree)
        tree.rename(target)
    return table.digest()


def _room(target: Path, size: int) -> None:
    """Refuse what cannot fit before anything is written."""
    info = os.statvfs(target.parent)
    free = info.f_bavail * info.f_frsize
    if size > free:
        raise UpgradeError(
            f"no space left in {target.parent}: the new tree takes {size >> 20} MiB,"
            f" {free >> 20} MiB are free"
        )


def _to_disk(tree: Path) -> None:
    handle = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc.syncfs(handle)
    finally:
        os.close(handle)


@dataclass
class _Work:
    """Contents in the order of the new table: from the old tree, made before, or from the delta."""

    base: Path
    old: Table
    streams: dict[str, Stream]
    plan: Iterator[PlanItem]
    place: bytes = b""
    made: dict[bytes, bytes] = field(default_factory=dict)
    kept: dict[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for record in self.old.records:
            if record.kind == "f":
                self.kept.setdefault(record.content, record.path)

    def table(self, digest: str) -> Table:
        """Return the new tree's table, which the delta's first content is."""
        item = next(self.plan)
        if item.recode is not None or item.decode or item.base != -1 or item.size > _MAX_TABLE:
            raise VerifyError("the delta does not begin with a table")
        data = b"".join(self._patched(item, self.old.encoded()))
        if hashlib.sha256(data).hexdigest() != digest:
            raise VerifyError("the table of the delta is not the one that it names")
        return parse_table(data)

    def content(self, record: Record) -> Iterator[bytes]:
        """Yield the bytes of a file of the new tree."""
        done = self.made.setdefault(record.content, record.path)
        if done != record.path:
            yield from _read(self.place + b"/" + done)
        elif record.content in self.kept:
            yield from _read(os.fsencode(self.base) + b"/" + self.kept[record.content])
        else:
            yield from self._fresh(record)

    def close(self) -> None:
        """Raise VerifyError when the delta has more than the tree takes."""
        if next(self.plan, None) is not None:
            raise VerifyError("the delta has contents that no file of the tree has")
        for stream in self.streams.values():
            stream.close()

    def _fresh(self, record: Record) -> Iterator[bytes]:
        item = next(self.plan, None)
        if item is None:
            raise VerifyError("the delta has fewer contents than the tree takes")
        if item.recode is None and item.size != record.size:
            raise VerifyError(f"{record.path!r} has another size in the delta than in its table")
        if item.size > _MAX_DECODED and item.recode is not None:
            raise VerifyError(f"{record.path!r} is too large inside")
        if item.base == -1:
            parts = self._patched(item, b"")
        elif (source := self.old.records[item.base]).kind != "f":
            raise VerifyError(f"{record.path!r} is made from {source.path!r}, which is no file")
        else:
            parts = self._from(item, os.fsencode(self.base) + b"/" + source.path)
        yield from parts if item.recode is None else encode(item.recode, parts, item.size)

    def _from(self, item: PlanItem, path: bytes) -> Iterator[bytes]:
        try:
            with open(path, "rb") as f:  # noqa: PTH123 - bytes
                if item.decode:
                    inside = decode(item.decode, f.read(), _MAX_DECODED)
                    yield from self._patched(item, inside)
                elif os.fstat(f.fileno()).st_size == 0:
                    yield from self._patched(item, b"")
                else:
                    with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as view:
                        yield from self._patched(item, view)
        except OSError as e:
            raise UpgradeError(f"the old tree cannot be read: {e}") from e

    def _patched(self, item: PlanItem, old: bytes | mmap.mmap) -> Iterator[bytes]:
        names = ("add", "take", "move", "difference", "fresh")
        patch = Patch(*(self.streams[name] for name in names))
        return patched(old, item.count, item.size, patch)


def _read(path: bytes) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as f:  # noqa: PTH123 - bytes
            while part := f.read(_CHUNK):
                yield part
    except OSError as e:
        raise UpgradeError(f"{os.fsdecode(path)!r} cannot be read: {e}") from e
