"""`files`: who writes which file, and what fills the page cache."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tegu.probe.paths import device_name, path_of
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.tool import Need, Tool, text, top_rows

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = ["Files"]

_KEY = struct.Struct("<QQII16s")
_PAGES = struct.Struct("<QQ64s32sII")
_MOUNTS = "/proc/self/mountinfo"


class Files(Tool):
    """Who writes which file, and what fills the page cache?

    Pages of files that became dirty, and pages that were read or written into the page cache, by
    file, process and control group. It is the one who writes that is named here, long before the
    kernel writes to the disk. A file is said with its path while the process has it open, else with
    its name and directory. Writes around the cache (O_DIRECT) and of memory maps that were dirty
    before are not seen.
    """

    name = "files"
    group = "io"
    question = "Who writes which file, and what fills the page cache?"
    facility = "the tracepoints writeback_dirty_folio (Linux 5.18) and mm_filemap_add_to_page_cache"
    overhead = "a short program for each folio that becomes dirty or enters the cache"
    object_name = "files"
    controller = "memory"
    needs = (
        Need("tracepoint", "writeback_dirty_folio"),
        Need("tracepoint", "mm_filemap_add_to_page_cache"),
    )
    example = "Example: tegu probe files --cgroup /system.slice/db.service --seconds 30"

    def summarize(self, session: Session) -> Record:
        import resource

        size = resource.getpagesize()
        places = _mounts()
        files = []
        for key, values in session.map("sums").items():
            inode, cgroup, device, tgid, comm = _KEY.unpack(key)
            dirtied, added, name, parent, disk, _ = _PAGES.unpack(values[0])
            short = "/".join(part for part in (text(parent), text(name)) if part and part != "/")
            if disk:
                short = f"the block device {device_name(disk)} itself"
            elif short:
                short = f".../{short}"
            files.append(
                {
                    "file": path_of(tgid, device, inode) or short or f"inode {inode}",
                    "device": device_name(device),
                    "mount": places.get(device_name(device)),
                    "inode": inode,
                    "comm": text(comm),
                    "pid": tgid,
                    "cgroup": session.names.groups.name(cgroup),
                    "dirtied_bytes": dirtied * size,
                    "cached_bytes": added * size,
                }
            )
        return {"files": files}

    def lines(self, event: Record) -> list[str]:
        return []  # there are none

    def tables(self, recording: Recording, top: int) -> list[Table]:
        files = recording.summary["files"]
        return [
            _table(files, "dirtied_bytes", "written, by file", recording.seconds, top),
            _table(files, "cached_bytes", "into the page cache, by file", recording.seconds, top),
        ]


def _table(files: list[Record], key: str, what: str, seconds: float, top: int) -> Table:
    total = sum(int(f[key]) for f in files)
    return Table(
        f"{total / 2**20:.1f} MiB {what}, in {seconds:.1f} s",
        ("MiB", "file", "mount", "process", "pid", "cgroup"),
        [
            (
                f"{f[key] / 2**20:.1f}",
                f["file"],
                f["mount"] or f["device"],
                f["comm"],
                f["pid"],
                f["cgroup"],
            )
            for f in top_rows(files, key, top)
            if f[key]
        ],
    )


def _mounts() -> dict[str, str]:
    """Return where each device is mounted in our namespace, by `MAJOR:MINOR`."""
    found: dict[str, str] = {}
    with open(_MOUNTS, errors="replace") as f:  # noqa: PTH123 - /proc
        for line in f:
            fields = line.split()
            if len(fields) > 4:
                found.setdefault(fields[2], text(fields[4].replace("\\040", " ").encode()))
    return found
