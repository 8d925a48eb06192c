"""A frozen file system: who writes to it waits, until it is thawed."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule
from tegu.heal.snapshot import text

# Where a writer waits for the end of a freeze: sb_start_write() and its kin take a percpu
# read-write semaphore (include/linux/fs.h, kernel/locking/percpu-rwsem.c). `mnt_want_write` and
# the like tell it from the other users of such semaphores.
_WAIT = ("percpu_rwsem_wait", "__percpu_down_read")
_FEW = 1 << 20  # more is no descriptor
_FREEZE = (
    "mnt_want_write",
    "sb_start_write",
    "vfs_write",
    "ksys_write",
    "vfs_iter_write",
    "do_iter_readv_writev",
    "open_last_lookups",
    "file_start_write",
    "do_writev",
    "touch_atime",
    "ext4_page_mkwrite",
    "ext4_journal_start_sb",
    "do_page_mkwrite",
    "__ext4_journal_start_sb",
    "ext4_journal_check_start",
)


def check(look: Look) -> Iterator[Finding]:
    waiting: dict[str, list[int]] = defaultdict(list)
    for process in look.stuck():
        stack = look.stack(process.pid)
        if any(f in _WAIT for f in stack[:3]) and any(f in _FREEZE for f in stack):
            where = _file_system(look, process.pid)
            if where is not None:
                waiting[where].append(process.pid)
    for mountpoint, pids in waiting.items():
        if _suspended(look, mountpoint):
            continue  # the rule suspended_device says more
        yield Finding(
            rule="frozen_filesystem",
            title=f"{mountpoint} is frozen: {len(pids)} processes wait to write to it",
            severity="critical",
            sure=0.9,
            culprit=Subject("filesystem", mountpoint),
            victims=tuple(look.process(p) for p in pids),
            evidence=(
                Evidence("writers that wait", len(pids)),
                Evidence("for at least", round(look.seconds, 1), "s"),
            ),
            stacks=tuple(look.stack(p) for p in pids[:3]),
            remedy="thaw",
            target={"mountpoint": mountpoint},
            advice=f"fsfreeze --unfreeze {mountpoint}, unless a backup froze it a moment ago",
        )


def _file_system(look: Look, pid: int) -> str | None:
    """Return the mountpoint of the file that the process's system call is about."""
    words = text(look.proc / f"{pid}/syscall").split()
    arguments = [int(w, 16) for w in words[1:4] if w.startswith("0x")]
    candidates = []
    if arguments and arguments[0] < _FEW:
        # A call that takes a descriptor has it first (write, ftruncate, fallocate ...).
        candidates.append(f"fd/{arguments[0]}")
    else:
        # open, unlink, mkdir and their kin with AT_FDCWD: the path is the first or the second.
        for pointer in arguments[:2]:
            path = _string(look, pid, pointer)
            if path.startswith("/"):
                candidates.append(f"root{posixpath.dirname(path)}")
            elif path:
                candidates.append(f"cwd/{posixpath.dirname(path)}")
    candidates += [*_writable(look, pid), "cwd"]
    by_device = {f.device: f.mountpoint for f in look.filesystems}
    for name in candidates:
        try:
            device = os.stat(f"{look.proc}/{pid}/{name}").st_dev  # noqa: PTH116
        except OSError:
            continue
        label = f"{os.major(device)}:{os.minor(device)}"
        if os.major(device) and label in by_device:
            return by_device[label]
    return None


def _string(look: Look, pid: int, pointer: int) -> str:
    """Return a string in the process's memory; nothing when there is none."""
    try:
        with open(f"{look.proc}/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            memory.seek(pointer)
            found = memory.read(256)
    except (OSError, OverflowError, ValueError):
        return ""
    return found.split(b"\0", 1)[0].decode(errors="replace") if b"\0" in found else ""


def _suspended(look: Look, mountpoint: str) -> bool:
    device = next((f.device for f in look.filesystems if f.mountpoint == mountpoint), "")
    return look.number(f"sys/dev/block/{device}/dm/suspended") == 1


def _writable(look: Look, pid: int) -> list[str]:
    try:
        names = os.listdir(look.proc / f"{pid}/fd")  # noqa: PTH208
    except OSError:
        return []
    return [f"fd/{name}" for name in names if _flags(look, pid, name) & os.O_ACCMODE]


def _flags(look: Look, pid: int, fd: str) -> int:
    for line in text(look.proc / f"{pid}/fdinfo/{fd}").splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0


RULE = Rule(
    "frozen_filesystem",
    "Is a file system frozen?",
    ("/proc/PID/stat", "/proc/PID/stack", "/proc/PID/syscall", "/proc/PID/fd"),
    "ioctl_fsfreeze; fsfreeze(8)",
    check,
)
