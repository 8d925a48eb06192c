"""A container's mounts: sources cloned in the host's view, attached in the container's own.

Mounts are descriptors until they are attached (open_tree(2), fsmount(2), move_mount(2)), and the
place where they are attached is a descriptor too: no path is looked at twice. The specification's
config.md, "Mounts".
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from tegu.errors import TeguError
from tegu.linux import libc, mountapi
from tegu.oci.cgroupmount import cgroup_mount, fill
from tegu.oci.fields import ConfigError
from tegu.oci.options import Options, parse
from tegu.oci.paths import PROC_SUPER_MAGIC, ensure, find

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

    from tegu.oci.config import Config

__all__ = ["CGROUP", "Sources", "attach_all", "clone_sources", "finish", "plan"]

CGROUP = ("cgroup", "cgroup2")
# What a mount in /proc may cover: files that tools like lxcfs replace. All else there says what
# the kernel does with the container, and covering it could mislead us or others.
_IN_PROC = frozenset(
    [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    ]
)


class Sources:
    """Detached copies of what is mounted from the host: `root`, and `binds` by index."""

    __slots__ = ("binds", "root")

    def __init__(self) -> None:
        self.root = -1
        self.binds: dict[int, int] = {}

    def all(self) -> list[int]:
        """Return all descriptors."""
        return [fd for fd in (self.root, *self.binds.values()) if fd >= 0]


def plan(config: Config) -> list[Options]:
    """Return what each mount's options mean. Raises ConfigError, UnsupportedError."""
    return [
        parse(m.get("options", []), m.get("type", ""), f"mounts[{i}].options")
        for i, m in enumerate(config.mounts)
    ]


def clone_sources(config: Config, options: list[Options]) -> Sources:
    """Copy the root and all sources of binds, as the calling process sees them.

    Raises ConfigError when one is not there, PermissionError where the caller may not mount.
    """
    found = Sources()
    try:
        found.root = _clone(config.rootfs, "root.path", recursive=True)
        mountapi.set_attributes(found.root, 0, recursive=True, propagation=libc.MS_PRIVATE)
        if not stat.S_ISDIR(os.fstat(found.root).st_mode):
            raise ConfigError(f"root.path: {config.rootfs}: not a directory")
        for i, (mount, option) in enumerate(zip(config.mounts, options, strict=True)):
            if option.bind:
                source = os.path.join(config.bundle, mount.get("source", ""))
                at = f"mounts[{i}].source"
                found.binds[i] = _clone(source, at, recursive=option.recursive)
    except BaseException:
        for fd in found.all():
            os.close(fd)
        raise
    return found


def _clone(source: str, field: str, *, recursive: bool) -> int:
    try:
        return mountapi.detached(source, recursive=recursive)
    except OSError as e:
        if e.errno == errno.EPERM:
            raise
        text = (os.strerror(e.errno or 0)).lower()
        raise ConfigError(f"{field}: {source}: {text}") from e


def attach_all(
    config: Config, options: list[Options], sources: Sources, cgroups: dict[str, str]
) -> None:
    """Mount everything below the root's descriptor, in the order of config.json.

    `cgroups` are the groups that the container is in, by controller ("" for version 2), for mounts
    of type cgroup. Runs in the container's mount namespace before the root is changed.
    Raises TeguError.
    """
    for i, (mount, option) in enumerate(zip(config.mounts, options, strict=True)):
        try:
            _attach(config, mount, option, sources, i, cgroups)
        except OSError as e:
            what = f" ({e.filename})" if e.filename else ""
            raise TeguError(
                f"mounts[{i}]: {mount.get('type') or 'bind'} on {mount['destination']}: "
                f"{(e.strerror or str(e)).lower()}{what}"
            ) from e


def _attach(
    config: Config,
    mount: dict[str, Any],
    option: Options,
    sources: Sources,
    index: int,
    cgroups: dict[str, str],
) -> None:
    kind = mount.get("type", "")
    destination = mount["destination"]
    if option.bind:
        fd = sources.binds[index]
        directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        # Unless told otherwise: what either side mounts below later is not seen by the other.
        if not option.propagation:
            rec = option.recursive
            mountapi.set_attributes(fd, 0, recursive=rec, propagation=libc.MS_PRIVATE)
    elif kind in CGROUP:
        fd, directory = cgroup_mount(config, cgroups), True
    elif not kind:
        raise ConfigError(f"mounts[{index}].type: missing, and the options say no bind")
    else:
        data = dict(option.data)
        if mount.get("source"):
            data = {"source": mount["source"], **data}
        fd, directory = mountapi.new_mount(kind, data), True
    try:
        target = _target(sources.root, destination, directory, index)
        try:
            if option.copy_up:
                _copy_up(target, fd)
            _set(fd, option)
            mountapi.attach(fd, target)
            if kind in CGROUP and not option.bind and "" not in cgroups:
                fill(cgroups, fd, option.flags)
        finally:
            os.close(target)
        # A shared mount must be attached first: the kernel does not link what is nowhere.
        for propagation, recursive in option.propagation:
            mountapi.set_attributes(fd, 0, recursive=recursive, propagation=propagation)
    finally:
        if not option.bind:
            os.close(fd)


def _target(root: int, destination: str, directory: bool, index: int) -> int:
    target = ensure(root, destination, directory=directory)
    inside = destination.strip("/").removeprefix("proc/")
    if destination.strip("/") == "proc" or libc.file_system(target) != PROC_SUPER_MAGIC:
        return target
    if inside in _IN_PROC:
        return target
    os.close(target)
    raise ConfigError(f"mounts[{index}].destination: {destination}: must not cover that in /proc")


def _set(fd: int, option: Options) -> None:
    clear = 0
    flags = option.flags
    if option.atime is not None:
        clear = mountapi.MOUNT_ATTR__ATIME
        flags |= option.atime
    if flags or clear:
        mountapi.set_attributes(fd, flags, clear=clear)
    if option.rflags:
        mountapi.set_attributes(fd, option.rflags, recursive=True)


def finish(config: Config, root: int, null: int) -> None:
    """Mask and write-protect what config.json says, below the root's descriptor.

    `null` is a descriptor of the host's /dev/null, which was looked at. Raises TeguError.
    """
    for i, path in enumerate(config.linux.get("maskedPaths", [])):
        _each(f"linux.maskedPaths[{i}]", root, path, lambda at: _mask(at, null))
    for i, path in enumerate(config.linux.get("readonlyPaths", [])):
        _each(f"linux.readonlyPaths[{i}]", root, path, _write_protect)


def _each(field: str, root: int, path: str, act: Any) -> None:
    try:
        at = find(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return  # what is not there needs no mask
    except OSError as e:
        raise TeguError(f"{field}: {path}: {(e.strerror or 'error').lower()}") from e
    try:
        act(at)
    except OSError as e:
        raise TeguError(f"{field}: {path}: {(e.strerror or 'error').lower()}") from e
    finally:
        os.close(at)


def _mask(at: int, null: int) -> None:
    if stat.S_ISDIR(os.fstat(at).st_mode):
        fd = mountapi.new_mount("tmpfs", {"size": "4k", "nr_inodes": "1", "mode": "0755"})
        mountapi.set_attributes(fd, mountapi.MOUNT_ATTR_RDONLY | mountapi.MOUNT_ATTR_NOSUID)
    else:
        fd = mountapi.detached(null)
    try:
        mountapi.attach(fd, at)
    finally:
        os.close(fd)


def _write_protect(at: int) -> None:
    fd = mountapi.detached(at, recursive=True, read_only=True)
    try:
        mountapi.attach(fd, at)
    finally:
        os.close(fd)


def _copy_up(source: int, target: int) -> None:
    """Copy what is in a directory of the root into the tmpfs that will cover it."""
    # The descriptors are os.O_PATH or of a mount: both open again by "." without a path.
    read = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    a, b = os.open(".", read, dir_fd=source), os.open(".", read, dir_fd=target)
    try:
        _copy_tree(a, b)
        st = os.fstat(a)
        os.fchmod(b, stat.S_IMODE(st.st_mode))
        os.fchown(b, st.st_uid, st.st_gid)
    finally:
        os.close(a)
        os.close(b)


def _copy_tree(a: int, b: int) -> None:
    for name in os.listdir(a):
        st = os.stat(name, dir_fd=a, follow_symlinks=False)
        if stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(name, dir_fd=a), name, dir_fd=b)
        elif stat.S_ISDIR(st.st_mode):
            os.mkdir(name, 0o700, dir_fd=b)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below, into = os.open(name, flags, dir_fd=a), os.open(name, flags, dir_fd=b)
            try:
                _copy_tree(below, into)
            finally:
                os.close(below)
                os.close(into)
        elif stat.S_ISREG(st.st_mode):
            _copy_file(a, b, name)
        else:
            os.mknod(name, st.st_mode, st.st_rdev, dir_fd=b)
        os.chown(name, st.st_uid, st.st_gid, dir_fd=b, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(name, stat.S_IMODE(st.st_mode), dir_fd=b)
        with suppress(OSError):
            times = (st.st_atime_ns, st.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=b, follow_symlinks=False)


def _copy_file(a: int, b: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    source = os.open(name, flags, dir_fd=a)
    try:
        made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, made, 0o600, dir_fd=b)
        try:
            while os.sendfile(target, source, None, 1 << 24):
                pass
        finally:
            os.close(target)
    finally:
        os.close(source)
