"""An ext4 image is made of contents: whether a source file has holes must not show."""

from __future__ import annotations

import io
import os
from pathlib import Path
from uuid import UUID

import pytest

from tegu.errors import BuildError
from tegu.image.ext4_super import settle_written
from tegu.image.filesystems import Request, make_file_system
from tegu.image.programs import HostTools
from tegu.process import run

MIB = 1 << 20
TIME = 1_795_132_800


def make(folder: Path, *, sparse: bool) -> Path:
    """Make a file system of one file of zeros, with a hole or with blocks on disk."""
    root = folder / "root"
    root.mkdir(parents=True)
    with (root / "zeros").open("wb") as f:
        if sparse:
            f.truncate(MIB)
        else:
            f.write(bytes(MIB))
            f.flush()
            os.fsync(f.fileno())
    os.utime(root / "zeros", (TIME, TIME))
    os.utime(root, (TIME, TIME))
    disk = folder / "disk"
    with disk.open("wb") as f:
        f.truncate(513 * MIB)
    scratch = folder / "scratch"
    scratch.mkdir()
    request = Request(
        root=root,
        disk=disk,
        offset=MIB,
        size=512 * MIB,
        label="root",
        uuid=UUID(int=5),
        seed=lambda name: UUID(int=len(name)),
        timestamp=TIME,
        scratch=scratch,
    )
    make_file_system("ext4", request, HostTools())
    return disk


def test_holes_do_not_show_and_the_file_system_is_whole(tmp_path: Path) -> None:
    dense, sparse = make(tmp_path / "dense", sparse=False), make(tmp_path / "sparse", sparse=True)
    assert dense.read_bytes() == sparse.read_bytes()
    # Backup superblocks are read by block number: 32768 is that of group 1, with blocks of 4 KiB.
    image = f"{sparse}?offset={MIB}"
    run(["e2fsck", "-fn", image])
    run(["dumpe2fs", "-h", "-o", "superblock=32768", "-o", "blocksize=4096", image])


def test_what_is_no_ext4_is_refused() -> None:
    with pytest.raises(BuildError, match="no ext4"):
        settle_written(io.BytesIO(bytes(4096)), 0)
    with pytest.raises(BuildError, match="no ext4"):
        settle_written(io.BytesIO(b""), 0)
