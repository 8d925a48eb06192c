"""Is buffered writing charged to who writes, and held to io.max? On ext4, xfs and btrfs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.qos.guest import prepare

__all__ = ["measure"]

PACKAGES = (
    "xfsprogs",
    "btrfs-progs",
    "libinih1",
    "liburcu8",
    "libedit2",
    "liblzo2-2",
    "libbsd0",
)
NULL_BLK = "nr_devices=1 gb=1 bs=4096 memory_backed=1 queue_mode=2 irqmode=0 submit_queues=1"


def measure(cache: Path, scratch: Path) -> list[dict[str, Any]]:
    """Return a row for each trial of writeback_inside.py.

    `share`: bytes of the device that io.stat has under batch, of all that web did not write;
    `rate`: bytes a second that reached the device for batch, of its io.max.
    """
    here = Path(__file__).parent
    lab = prepare(
        cache,
        scratch,
        modules=("null_blk", "ext4", "xfs", "btrfs"),
        packages=PACKAGES,
        programs=("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"),
        scripts=(here / "inside.py", here / "writeback_inside.py"),
    )
    said = lab.ask({}, memory=1024, null_blk=NULL_BLK, script="bench.qos.writeback_inside")
    rows = []
    for r in said:
        if r["name"] != "result":
            continue
        others = max(1, r["total"] - r["web"])
        rows.append(
            {
                "file system": r["system"],
                "io.max": r["limited"],
                "share": r["batch"] / others,
                "rate": others / r["seconds"] / r["limit"],
                "fsyncs": r["syncs"],
                "longest fsync ms": r["longest"] * 1e3,
                "median fsync ms": r["median"] * 1e3,
            }
        )
    return rows
