"""A mount that only a private namespace still has: unmounted there."""

from __future__ import annotations

import errno
import os

from tegu.heal.finding import Finding
from tegu.heal.remedy import Refused, Remedy, RepairError, State
from tegu.heal.snapshot import text
from tegu.linux import libc
from tegu.linux.mountinfo import parse_mountinfo

__all__ = ["UnmountLeaked"]


class UnmountLeaked(Remedy):
    """Enter the mount namespace and unmount, unless something there uses it.

    Never lazily (MNT_DETACH): that would only hide it.
    """

    name = "unmount-leaked"
    summary = "unmount what only a private namespace still has"
    blast = "process"
    reversible = False

    def prepare(self, finding: Finding) -> State:
        target = finding.target
        try:
            number = os.stat(f"/proc/{target['pid']}/ns/mnt").st_ino  # noqa: PTH116
        except OSError as e:
            raise Refused("the process has ended, and its namespace with it") from e
        mounts = parse_mountinfo(text(f"/proc/{target['pid']}/mountinfo"))
        if number != target["namespace"] or not any(
            m.mountpoint == target["mountpoint"] and m.device == target["device"] for m in mounts
        ):
            raise Refused(f"{target['mountpoint']} is not mounted there any more")
        return {}

    def plan(self, finding: Finding, state: State) -> list[str]:
        target = finding.target
        return [f"nsenter --mount --target {target['pid']} umount {target['mountpoint']}"]

    def apply(self, finding: Finding, state: State) -> None:
        target = finding.target
        child = os.fork()
        if child == 0:
            try:
                fd = os.open(f"/proc/{target['pid']}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                libc.setns(fd, libc.CLONE_NEWNS)
                libc.umount2(str(target["mountpoint"]), 0)
                os._exit(0)
            except OSError as e:
                os._exit(min(e.errno or 1, 255))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == errno.EBUSY:
            raise RepairError("something in that namespace uses it", hint="see `fuser -m`")
        if code != 0:
            raise RepairError(f"umount: {os.strerror(code)}")
