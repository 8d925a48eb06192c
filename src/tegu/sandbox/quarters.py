"""The supervisor's mount namespace: all of the host read-only, with a /proc of its own.

Read-only because a program in a box may get hold of the file that its first process ran from
(/proc/self/exe, CVE-2019-5736): there it finds a mount that nobody can write to.
"""

from __future__ import annotations

from pathlib import Path

from tegu.linux import libc, mountapi

__all__ = ["furnish"]


def furnish(state: Path | None = None) -> None:
    """Set the mounts of this process's new mount namespace up; raises OSError.

    `state` is the one directory of the host that stays writable; no box sees it. Trees of images
    in it do not: boxes start programs from there.
    """
    before = Path("/proc/self/mountinfo").read_text().splitlines()
    libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    if state is not None:
        libc.mount(str(state), str(state), "", libc.MS_BIND)  # a mount of its own
        images = state / "images"
        if images.is_dir():
            libc.mount(str(images), str(images), "", libc.MS_BIND)
    mountapi.set_attributes("/", mountapi.MOUNT_ATTR_RDONLY, recursive=True)
    if state is not None:
        mountapi.set_attributes(
            str(state),
            mountapi.MOUNT_ATTR_NOSUID | mountapi.MOUNT_ATTR_NODEV | mountapi.MOUNT_ATTR_NOEXEC,
            clear=mountapi.MOUNT_ATTR_RDONLY,
        )
    for line in before:
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        # Not what came read-only: a container's owner meant it, and the kernel may have locked it.
        if kind in ("cgroup", "cgroup2") and "ro" not in fields[5].split(","):
            target = fields[4].encode().decode("unicode_escape")
            mountapi.set_attributes(target, 0, clear=mountapi.MOUNT_ATTR_RDONLY)
    libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
