"""Files: the room of logs that are deleted but open, and directories that may be emptied."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tegu.heal.filesystems import deleted_files
from tegu.heal.finding import Finding
from tegu.heal.policy import load_policy
from tegu.heal.remedy import Refused, Remedy, State

__all__ = ["CleanDirectory", "TruncateDeleted"]


class TruncateDeleted(Remedy):
    """Empty a deleted log that a process still writes to, through that process's descriptor.

    Only a file opened for appending alone: nobody can read from it through that descriptor, and
    its writer goes on at the new end.
    """

    name = "truncate-deleted"
    summary = "empty a deleted log that is still written to"
    blast = "process"
    reversible = False  # what was in it had no name any more

    def prepare(self, finding: Finding) -> State:
        target = finding.target
        path = f"/proc/{target['pid']}/fd/{target['fd']}"
        try:
            about = os.stat(path)  # noqa: PTH116
        except OSError as e:
            raise Refused("the file has been closed meanwhile") from e
        if about.st_nlink or not stat.S_ISREG(about.st_mode):
            raise Refused(f"{path} is not a deleted file")
        held = deleted_files(Path("/proc"), _processes(), about.st_dev)
        mine = next((f for f in held if (f.pid, f.fd) == (target["pid"], target["fd"])), None)
        if mine is None or not mine.append_only:
            raise Refused(f"{target['name']} is no log: its process may read it, or seek in it")
        return {"bytes": mine.size}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"truncate --size 0 /proc/{finding.target['pid']}/fd/{finding.target['fd']}"]

    def apply(self, finding: Finding, state: State) -> None:
        os.truncate(f"/proc/{finding.target['pid']}/fd/{finding.target['fd']}", 0)


class CleanDirectory(Remedy):
    """Remove the files of a directory that the policy names as disposable."""

    name = "clean-directory"
    summary = "remove the files of a directory that the policy says may go"
    blast = "process"
    reversible = False

    def prepare(self, finding: Finding) -> State:
        directory = Path(finding.target["directory"])
        allowed = load_policy().disposable
        if not any(directory == a or directory.is_relative_to(a) for a in map(Path, allowed)):
            raise Refused(
                f"{directory} is not among the policy's `disposable`",
                hint="name it there (/etc/tegu/heal.toml) if its files may go",
            )
        return {}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return [f"find {finding.target['directory']} -xdev -maxdepth 1 -type f -delete"]

    def apply(self, finding: Finding, state: State) -> None:
        removed = 0
        with os.scandir(finding.target["directory"]) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink(missing_ok=True)
                    removed += 1
        state["removed"] = removed


def _processes() -> list[int]:
    return [int(n) for n in os.listdir("/proc") if n.isdigit()]  # noqa: PTH208
