"""Memory that nobody needs: reclaimed from one control group, in small steps.

memory.reclaim (Documentation/admin-guide/cgroup-v2.rst, since 5.19): EAGAIN means that less than
asked for was found, which is no failure.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tegu.heal.finding import Finding
from tegu.heal.remedy import Refused, Remedy, State
from tegu.heal.snapshot import hierarchy, text

__all__ = ["ReclaimDentries", "ReclaimZombies", "reclaim"]

_STEP = 8 << 20
_MOST_STEPS = 64
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ReclaimZombies(Remedy):
    """Free removed control groups: reclaim what they hold, then read tmpfs files anew.

    Pages of a tmpfs cannot be dropped, but swapped out; whoever reads them next is charged for
    them, and the removed group is free (swapin_charge in mm/memcontrol.c). They are read from the
    root group, which is never removed. Nothing is deleted.
    """

    name = "reclaim-zombies"
    summary = "reclaim what keeps removed cgroups alive"
    blast = "cgroup"
    settle = 1.0
    reversible = False  # caches fill again by themselves

    def prepare(self, finding: Finding) -> State:
        directory = _directory(finding)
        if finding.target.get("pinned") == "tmpfs" and not _swap():
            raise Refused(
                "a tmpfs holds them, and there is no swap to move its pages to",
                hint="remove files of the tmpfs, or turn on swap",
            )
        return {"directory": str(directory)}

    def plan(self, finding: Finding, state: State) -> list[str]:
        steps = [f"echo {_STEP} > {state['directory']}/memory.reclaim  # while it helps"]
        if finding.target.get("pinned") == "tmpfs":
            steps.append("cat FILES-ON-TMPFS > /dev/null  # from the root cgroup")
        return steps

    def apply(self, finding: Finding, state: State) -> None:
        directory = Path(state["directory"])
        state["freed"] = reclaim(directory, until=lambda: dying(directory) == 0)
        if dying(directory) and _swap():
            state["files_read"] = _read_again(pinned_files(directory))
            state["freed"] += reclaim(directory, until=lambda: dying(directory) == 0)
        # They go in the background, after a grace period.
        end = time.monotonic() + 10
        while dying(directory) and time.monotonic() < end:
            time.sleep(0.2)
        state["dying"] = dying(directory)


class ReclaimDentries(Remedy):
    """Reclaim a group's memory in small steps, and with it the names that it looked up."""

    name = "reclaim-dentries"
    summary = "reclaim the names a cgroup looked up in vain"
    blast = "cgroup"
    reversible = False

    def prepare(self, finding: Finding) -> State:
        return {"directory": str(_directory(finding))}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"echo {_STEP} > {state['directory']}/memory.reclaim  # while names go"]

    def apply(self, finding: Finding, state: State) -> None:
        before = _slab(Path(state["directory"]))
        state["freed"] = reclaim(
            Path(state["directory"]), until=lambda: _slab(Path(state["directory"])) < before // 10
        )


def reclaim(directory: Path, *, until: Callable[[], bool]) -> int:
    """Reclaim step by step until it is enough, or three steps find nothing; returns bytes."""
    freed = dry = 0
    for _ in range(_MOST_STEPS):
        if until():
            break
        before = _current(directory)
        try:
            (directory / "memory.reclaim").write_text(str(_STEP))
        except OSError as e:
            if e.errno != errno.EAGAIN:
                raise
        gone = max(0, before - _current(directory))
        freed += gone
        dry = dry + 1 if gone < _STEP // 8 else 0
        if dry >= 3:
            break
    return freed


def dying(directory: Path) -> int:
    """Return the removed groups below this one that live on."""
    for line in text(directory / "cgroup.stat").splitlines():
        if line.startswith("nr_dying_descendants "):
            return int(line.split()[1])
    return 0


def pinned_files(directory: Path, most: int = 20_000) -> Iterator[str]:
    """Yield files on a tmpfs whose first page belongs to no living control group.

    /proc/kpagecgroup has the group of each page (Documentation/admin-guide/mm/pagemap.rst); a file
    of which nothing is in memory is swapped out, and may be one too.
    """
    from tegu.linux.mountinfo import parse_mountinfo

    root = hierarchy()
    living = {0} if root is None else {0, *_inodes(root)}
    seen = 0
    for mount in parse_mountinfo(text("/proc/self/mountinfo")):
        if mount.kind != "tmpfs":
            continue
        for path in _regular(mount.mountpoint):
            seen += 1
            if seen > most:
                return
            owner = page_group(path)
            if owner is None or owner not in living:
                yield path


def page_group(path: str) -> int | None:
    """Return the inode of the control group that a file's first page is charged to.

    0 where that cannot be asked, None when it is not in memory. Looking does not read it in:
    mincore(2) is asked first.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    failed = ctypes.c_void_p(-1).value
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        if os.fstat(fd).st_size == 0:
            return 0
        # Of libc, not of the module mmap: the address is needed.
        address = libc.mmap(None, _PAGE, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        if address == failed:
            return 0
        try:
            resident = ctypes.c_ubyte()
            libc.mincore(ctypes.c_void_p(address), _PAGE, ctypes.byref(resident))
            if not resident.value & 1:
                return None
            ctypes.string_at(address, 1)
            with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
                pagemap.seek(address // _PAGE * 8)
                frame = struct.unpack("=Q", pagemap.read(8))[0] & ((1 << 55) - 1)
            with open("/proc/kpagecgroup", "rb", buffering=0) as groups:  # noqa: PTH123
                groups.seek(frame * 8)
                return int(struct.unpack("=Q", groups.read(8))[0])
        finally:
            libc.munmap(ctypes.c_void_p(address), _PAGE)
    except (OSError, struct.error):
        return None
    finally:
        os.close(fd)


def _read_again(files: Iterator[str]) -> int:
    """Read files from the root control group, in a process of its own; return how many."""
    root = hierarchy()
    chosen = list(files)
    child = os.fork()
    if child == 0:
        try:
            if root is not None:
                (root / "cgroup.procs").write_text("0")
            for path in chosen:
                with open(path, "rb", buffering=0) as f:  # noqa: PTH123
                    while f.read(1 << 20):
                        pass
            os._exit(0)
        except OSError:
            os._exit(1)
    os.waitpid(child, 0)
    return len(chosen)


def _regular(top: str) -> Iterator[str]:
    device = os.lstat(top).st_dev
    pending = [top]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    if about.st_dev != device:
                        continue
                    if stat.S_ISDIR(about.st_mode):
                        pending.append(entry.path)
                    elif stat.S_ISREG(about.st_mode):
                        yield entry.path
        except OSError:
            continue


def _inodes(root: Path) -> Iterator[int]:
    for directory, _, _ in os.walk(root):
        try:
            yield os.stat(directory).st_ino  # noqa: PTH116
        except OSError:
            continue


def _directory(finding: Finding) -> Path:
    root = hierarchy()
    path = str(finding.target["group"])
    if root is None or not (root / path.lstrip("/") / "memory.reclaim").exists():
        raise Refused(f"{path} has no memory.reclaim")
    return root / path.lstrip("/")


def _current(directory: Path) -> int:
    word = text(directory / "memory.current").strip()
    return int(word) if word.isdigit() else 0


def _slab(directory: Path) -> int:
    for line in text(directory / "memory.stat").splitlines():
        if line.startswith("slab_reclaimable "):
            return int(line.split()[1])
    return 0


def _swap() -> bool:
    return len(text("/proc/swaps").splitlines()) > 1
