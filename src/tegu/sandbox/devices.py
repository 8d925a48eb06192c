"""A box's /dev: the devices that every program may have, on one mount that nobody can write to."""

from __future__ import annotations

import os
import stat

from tegu.linux import libc, mountapi

__all__ = ["NODES", "attach_devices", "new_devices"]

NODES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
"""Minor numbers of the memory devices, major 1 (admin-guide/devices.txt)."""
_TTY = (5, 0)
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_DIRECTORIES = ("shm", "pts")


def new_devices() -> int:
    """Return a detached mount with device nodes of its own; only real root can make them."""
    fd = mountapi.new_mount("tmpfs", {"mode": "0755", "size": "64k"})
    try:
        before = os.umask(0)
        try:
            for name, minor in NODES.items():
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(1, minor), dir_fd=fd)
            os.mknod("tty", stat.S_IFCHR | 0o666, os.makedev(*_TTY), dir_fd=fd)
        finally:
            os.umask(before)
        for name in _DIRECTORIES:
            os.mkdir(name, dir_fd=fd)
        for name, to in _LINKS.items():
            os.symlink(to, name, dir_fd=fd)
        flags = mountapi.MOUNT_ATTR_RDONLY | mountapi.MOUNT_ATTR_NOSUID
        mountapi.set_attributes(fd, flags | mountapi.MOUNT_ATTR_NOEXEC)
    except BaseException:
        os.close(fd)
        raise
    return fd


def attach_devices(dev: str, made: int | None) -> None:
    """Mount /dev at `dev`: what `new_devices` made, or else binds of the host's devices."""
    if made is not None:
        mountapi.attach(made, dev)
        return
    libc.mount("tmpfs", dev, "tmpfs", libc.MS_NOSUID | libc.MS_NOEXEC, "mode=0755,size=64k")
    for name in (*NODES, "tty"):
        os.close(os.open(f"{dev}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
        libc.mount(f"/dev/{name}", f"{dev}/{name}", "", libc.MS_BIND)
    for name in _DIRECTORIES:
        os.mkdir(f"{dev}/{name}")  # noqa: PTH102
    for name, to in _LINKS.items():
        os.symlink(to, f"{dev}/{name}")  # noqa: PTH211
    mountapi.set_attributes(dev, mountapi.MOUNT_ATTR_RDONLY)
