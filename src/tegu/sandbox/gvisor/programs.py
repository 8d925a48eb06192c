"""Programs in gVisor, as far as they can be told from outside: whether there is one, whose child a
process is, how one ended."""

from __future__ import annotations

import os
import stat

from tegu.linux import openat

__all__ = ["descends", "end_of_program", "find_program", "parents_by_pid"]


def find_program(root: int, name: str, path: str, cwd: str) -> None:
    """Raise OSError as execve(2) would, where that shows from outside."""
    places = [name] if "/" in name else [f"{d}/{name}" for d in path.split(":")]
    problem = OSError(2, "no such program in the box's PATH")
    for place in places:
        whole = place if place.startswith("/") else f"{cwd}/{place}"
        if whole.startswith(("/dev/", "/proc/")):
            return  # gVisor's own, which only it sees
        try:
            fd = openat.open_in_root(root, whole, os.O_PATH)
        except OSError as e:
            if e.errno != 2:
                problem = OSError(e.errno or 5, e.strerror or str(e))
            continue
        about = os.fstat(fd)
        os.close(fd)
        if stat.S_ISREG(about.st_mode) and about.st_mode & 0o111:
            return
        problem = OSError(13, os.strerror(13))
    raise problem


def end_of_program(status: int) -> int:
    """Return runsc's end as wait(2) would say its program's: 128 + N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code - 128 if 128 < code < 160 else status


def parents_by_pid(table: str) -> dict[int, int]:
    """Read `runsc ps`: UID PID PPID ... by pid; the first process is left out."""
    found = {}
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 2 and words[1].isdigit() and words[2].isdigit() and words[1] != "1":
            found[int(words[1])] = int(words[2])
    return found


def descends(pid: int, parents: dict[int, int], others: set[int]) -> bool:
    """Whether a process is one of `others`, or below one."""
    for _ in range(len(parents) + 1):
        if pid in others:
            return True
        if pid not in parents:
            return False
        pid = parents[pid]
    return False
