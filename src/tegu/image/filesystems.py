"""Root file systems, made from a tree straight into their place on the disk.

Nothing is mounted and no loop device is needed. Each kind is the same bytes for the same tree,
whatever the order in which the tree came about: UUIDs and hash seeds are given, and times that a
tool takes from the clock or from the source's inodes are settled afterwards.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tegu.errors import BuildError
from tegu.image.programs import Tools, tool_environment
from tegu.image.sparse import put_into
from tegu.process import CommandError

__all__ = ["FILE_SYSTEMS", "FileSystem", "Request", "TreeSize", "make_file_system", "measure"]
__all__ += ["write_erofs"]

MIB = 1 << 20
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class TreeSize:
    """What a tree takes: `data` is bytes of file contents in whole blocks of 4 KiB."""

    inodes: int
    directories: int
    data: int


@dataclass(frozen=True, slots=True)
class Request:
    """A file system to be made of `root`, at `offset` of the existing file `disk`; bytes.

    `seed` gives hash seeds and all UUIDs but the file system's own, `uuid`.
    """

    root: Path
    disk: Path
    offset: int
    size: int
    label: str
    uuid: UUID
    seed: Callable[[str], UUID]
    timestamp: int
    scratch: Path


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One kind: how to make it, and the size that `TreeSize` needs at least (bytes).

    `flags` are mount options beyond the defaults; `writable` is false where machines cannot write.
    """

    name: str
    make: Callable[[Request, Tools], None]
    least: Callable[[TreeSize], int]
    flags: str = ""
    writable: bool = True


def measure(root: Path) -> TreeSize:
    """Measure a tree; files with several names count once."""
    inodes = directories = data = 0
    seen: set[tuple[int, int]] = set()
    stack = [os.fspath(root)]
    while stack:
        directories += 1
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    stack.append(entry.path)
                    continue
                if info.st_nlink > 1:
                    key = (info.st_dev, info.st_ino)
                    if key in seen:
                        continue
                    seen.add(key)
                inodes += 1
                if stat.S_ISREG(info.st_mode) or info.st_size > 60:
                    data += -(-info.st_size // BLOCK) * BLOCK
    return TreeSize(inodes + directories, directories, data + directories * BLOCK)


def make_file_system(name: str, request: Request, tools: Tools) -> None:
    """Make the file system `name`; raises BuildError when the tree does not fit."""
    try:
        FILE_SYSTEMS[name].make(request, tools)
    except CommandError as e:
        text = e.completed.stderr + e.completed.stdout if e.completed is not None else e.message
        raise _explain(name, request, text, e) from e


# What the mkfs programs say when the tree is larger than the place given. Words of the host's own
# disk being full (ENOSPC) are the same for some, so the free space decides.
_FULL = re.compile(
    r"could not allocate|no space left|not enough (free )?space|too small|ENOSPC|out of space",
    re.IGNORECASE,
)


def _explain(name: str, request: Request, text: str, error: CommandError) -> BuildError:
    info = os.statvfs(request.disk.parent)
    free = info.f_bavail * info.f_frsize
    if not _FULL.search(text) and free > MIB:
        return BuildError(f"cannot make the {name} file system: {error.message}")
    needed = FILE_SYSTEMS[name].least(measure(request.root))
    if needed > request.size:
        return too_large(name, needed, request.size)
    if free < needed:
        return BuildError(
            f"no space left in {request.disk.parent}: {free // MIB} MiB are free,"
            f" the {name} file system takes about {needed // MIB} MiB",
            hint="free some space, or build elsewhere",
        )
    # The estimate was too low, but the tool knows.
    return too_large(name, request.size + request.size // 8, request.size)


def too_large(name: str, needed: int, given: int) -> BuildError:
    """Return the error for a tree that is larger than its disk."""
    return BuildError(
        f"the system does not fit its disk: its {name} file system needs {-(-needed // MIB)} MiB"
        f" and has {given // MIB} MiB",
        hint="raise image.size, or leave something out",
    )


# ext4. All that mke2fs.conf could decide is given, so that no file of the tools has a say.
_EXT4_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed,orphan_file"
)


def _journal(size: int) -> int:
    """MiB of journal for a file system of `size` bytes; a small disk has a small one."""
    return 4 if size < 512 * MIB else 16 if size < 2048 * MIB else 64


def _make_ext4(request: Request, tools: Tools) -> None:
    from tegu.image.ext4_super import settle_written
    from tegu.image.ext4_times import settle_times

    config = request.scratch / "mke2fs.conf"
    config.write_text("[defaults]\n[fs_types]\next4 = {\n}\n")
    extended = (
        f"offset={request.offset}",
        f"hash_seed={request.seed('hash')}",
        # The disk is a new sparse file: all that is not written is zeros already.
        "assume_storage_prezeroed=1,lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        "root_owner=0:0",
    )
    argv: list[str | Path] = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", _EXT4_FEATURES]
    argv += ["-b", str(BLOCK), "-I", "256", "-i", "16384", "-m", "1", "-G", "16"]
    argv += ["-J", f"size={_journal(request.size)}", "-e", "remount-ro"]
    argv += ["-L", request.label[:16], "-U", str(request.uuid), "-E", ",".join(extended)]
    argv += ["-d", request.root, request.disk, f"{request.size // 1024}k"]
    env = tool_environment(
        request.timestamp, MKE2FS_CONFIG=str(config), E2FSPROGS_FAKE_TIME=str(request.timestamp)
    )
    tools.run(argv, binds=[request.root, request.scratch], env=env)
    with request.disk.open("r+b") as f:
        settle_times(f, request.offset, request.timestamp)
        settle_written(f, request.offset)


def _least_ext4(tree: TreeSize) -> int:
    """Data, inodes at one per 16 KiB or as many as there are, journal, maps, and 8 % to live in."""
    body = tree.data + tree.inodes * 256
    inodes = max(tree.inodes * 16384, body)
    tables = inodes // 64
    size = (tree.data + tables) * 108 // 100 + 12 * MIB
    return max(size, tree.inodes * 16384 + 4 * MIB) + _journal(size) * MIB


def write_erofs(request: Request, tools: Tools) -> Path:
    """Make an erofs image of `request.root`, a file of its own in the scratch directory.

    Raises BuildError when it is larger than `request.size`.
    """
    # Not --offset: with it, erofs-utils 1.8 writes the compression settings without it.
    image = request.scratch / "root.erofs"
    # zstd would be a tenth smaller; lz4 is what every kernel with erofs can read, and faster.
    argv: list[str | Path] = ["mkfs.erofs", "--quiet", "-zlz4hc", "-C65536"]
    argv += [f"-T{request.timestamp}", "--mkfs-time", f"-U{request.uuid}"]
    argv += [f"-L{request.label[:15]}"]
    env = tool_environment(request.timestamp)
    try:
        tools.run([*argv, image, request.root], binds=[request.root, request.scratch], env=env)
    except CommandError as e:
        text = e.completed.stderr + e.completed.stdout if e.completed is not None else e.message
        raise _explain("erofs", request, text, e) from e
    size = image.stat().st_size
    if size > request.size:
        raise too_large("erofs", size, request.size)
    return image


def _make_erofs(request: Request, tools: Tools) -> None:
    put_into(write_erofs(request, tools), request.disk, request.offset)


def _least_erofs(tree: TreeSize) -> int:
    """What it takes at worst, when nothing can be compressed."""
    return tree.data + tree.inodes * 96 + 4 * MIB


_XFS_LEAST = 300 * MIB


def _make_xfs(request: Request, tools: Tools) -> None:
    from tegu.image.xfs_inodes import settle_inodes
    from tegu.image.xfs_proto import write_protofile

    if request.size < _XFS_LEAST:
        raise too_large("xfs", _XFS_LEAST, request.size)
    proto = write_protofile(request.root, request.scratch)
    image = request.scratch / "root.xfs"
    with image.open("wb") as f:
        f.truncate(request.size)
    # What follows from the number of processors or the kind of disk here is given.
    argv: list[str | Path] = ["mkfs.xfs", "-q", "-K", "-b", f"size={BLOCK}", "-s", "size=4096"]
    argv += ["-m", f"crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1,uuid={request.uuid}"]
    argv += ["-d", "agcount=4", "-i", "size=512,nrext64=1", "-l", f"size={_xfs_log(request.size)}m"]
    argv += ["-L", request.label[:12], "-p", f"file={proto.path},slashes_are_spaces=1", image]
    env = tool_environment(request.timestamp)
    tools.run(argv, binds=[request.root, request.scratch], env=env)
    commands = proto.commands()
    if commands:
        tools.run(["xfs_db", "-x", "-f", image], binds=[request.scratch], env=env, stdin=commands)
    listed = tools.run(
        ["xfs_db", "-r", "-f", "-c", "blockget -n", "-c", "ncheck", image],
        binds=[request.scratch],
        env=env,
    )
    with image.open("r+b") as f:
        settle_inodes(f, proto.inodes(listed.stdout), request.timestamp)
    put_into(image, request.disk, request.offset)


def _xfs_log(size: int) -> int:
    """MiB of log: mkfs.xfs wants at least 64 for file systems of its least size and more."""
    return 64 if size < 16 * 1024 * MIB else 128


def _least_xfs(tree: TreeSize) -> int:
    body = tree.data + tree.inodes * 512
    return max(body * 106 // 100 + _xfs_log(body) * MIB + 24 * MIB, _XFS_LEAST)


_BTRFS_LEAST = 128 * MIB


def _make_btrfs(request: Request, tools: Tools) -> None:
    from tegu.image.btrfs_trees import settle_trees
    from tegu.image.stage import staged

    if request.size < _BTRFS_LEAST:
        raise too_large("btrfs", _BTRFS_LEAST, request.size)
    image = request.scratch / "root.btrfs"
    with image.open("wb") as f:
        f.truncate(request.size)
    # Beside the scratch directory: the tools see that with all that is mounted below it, and a
    # directory that is still a mount point for them could not be removed.
    stage = request.scratch.with_name(f"{request.scratch.name}.stage")
    with staged(request.root, stage) as tree:
        argv: list[str | Path] = ["mkfs.btrfs", "-q", "-f", "-K", "--csum", "xxhash"]
        argv += ["-s", str(BLOCK), "-n", "16384", "-d", "single", "-m", "dup", "-L", request.label]
        argv += ["-U", str(request.uuid), "--device-uuid", str(request.seed("device"))]
        argv += ["--rootdir", tree, image]
        env = tool_environment(request.timestamp)
        tools.run(argv, binds=[request.scratch, tree], env=env)
    # A file that is too small is made larger, without a word.
    size = image.stat().st_size
    if size > request.size:
        raise too_large("btrfs", size, request.size)
    with image.open("r+b") as f:
        ours = settle_trees(f, request.seed, request.timestamp)
    put_into(image, request.disk, request.offset, ours)


def _least_btrfs(tree: TreeSize) -> int:
    """Data, metadata twice, and the room in which chunks are laid out."""
    return max(tree.data + 2 * tree.inodes * 1024 + tree.data // 4 + 64 * MIB, _BTRFS_LEAST)


FILE_SYSTEMS: Mapping[str, FileSystem] = {
    "ext4": FileSystem("ext4", _make_ext4, _least_ext4),
    "erofs": FileSystem("erofs", _make_erofs, _least_erofs, writable=False),
    "xfs": FileSystem("xfs", _make_xfs, _least_xfs),
    "btrfs": FileSystem("btrfs", _make_btrfs, _least_btrfs),
}
