"""The EFI system partition: a FAT32 file system with fixed serial number and dates."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tegu.errors import BuildError
from tegu.image.programs import Tools, tool_environment

__all__ = ["LEAST", "make_esp"]

MIB = 1 << 20
LEAST = 36 * MIB
"""FAT32 has at least 65,525 clusters (Microsoft's FAT specification), the smallest 512 bytes."""


def _cluster_sectors(size: int) -> int:
    """Return the largest cluster that still makes enough of them for FAT32, in sectors."""
    sectors = 8
    while sectors > 1 and size // (sectors * 512) < 72_000:
        sectors //= 2
    return sectors


def make_esp(
    files: Mapping[str, bytes],
    disk: Path,
    offset: int,
    size: int,
    *,
    volume_id: int,
    timestamp: int,
    tools: Tools,
    scratch: Path,
) -> None:
    """Make the file system at `offset` of `disk` (bytes) and put `files` into it, by path.

    Raises BuildError when they do not fit.
    """
    cluster = _cluster_sectors(size) * 512
    needed = sum(-(-len(data) // cluster) + 2 for data in files.values()) * cluster + size // 64
    if needed > size or size < LEAST:
        least = max(needed + MIB, LEAST)
        raise BuildError(
            f"the boot files need an ESP of {-(-least // MIB)} MiB and it has {size // MIB} MiB",
            hint="raise image.esp_size",
        )
    env = tool_environment(timestamp, MTOOLS_SKIP_CHECK="1", MTOOLSRC="/dev/null")
    argv: list[str | Path] = ["mkfs.fat", "--invariant", "-F", "32", "-S", "512"]
    argv += ["-s", str(_cluster_sectors(size)), "-i", f"{volume_id:08X}", "-n", "ESP"]
    argv += [f"--offset={offset // 512}", disk, str(size // 1024)]
    tools.run(argv, binds=[scratch], env=env)
    stage = scratch / "esp"
    stage.mkdir()
    for name, data in sorted(files.items()):
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for directory, _, names in os.walk(stage, topdown=False):
        for path in (Path(directory), *(Path(directory) / n for n in names)):
            os.utime(path, (timestamp, timestamp))
    target = f"{disk}@@{offset}"
    # One call per directory level keeps the order of entries ours and not the host's.
    directories = sorted({p for name in files for p in _parents(name)})
    tools.run(["mmd", "-i", target, *(f"::/{d}" for d in directories)], binds=[scratch], env=env)
    for directory in ["", *directories]:
        here = sorted(n for n in files if n.rpartition("/")[0] == directory)
        if here:
            sources = [stage / n for n in here]
            tools.run(
                ["mcopy", "-m", "-Q", "-i", target, *sources, f"::/{directory}"],
                binds=[scratch],
                env=env,
            )
    shutil.rmtree(stage)


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
