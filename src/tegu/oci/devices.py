"""A container's /dev: device nodes, links, and the terminal's console.

config-linux.md, "Default Devices" and "Devices". Nodes are made where this is permitted; in a user
namespace the host's own are shown instead, after a look at their numbers.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from tegu.errors import TeguError
from tegu.linux import mountapi
from tegu.oci.fields import ConfigError
from tegu.oci.paths import ensure, find, parent

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

    from tegu.oci.config import Config

__all__ = ["host_null", "make_devices", "show_console"]

_DEFAULT = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def host_null() -> int:
    """Return an O_PATH descriptor of the host's /dev/null, which is that indeed.

    What masks a file must be it and nothing else (CVE-2025-31133). Raises TeguError.
    """
    fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    st = os.fstat(fd)
    if not stat.S_ISCHR(st.st_mode) or st.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise TeguError("the host's /dev/null is not the null device")
    return fd


def make_devices(config: Config, root: int) -> None:
    """Make the nodes and links in /dev, unless /dev itself comes from the host. Raises TeguError.

    Runs before the root is changed.
    """
    for mount in config.mounts:
        kind, options = mount.get("type", ""), mount.get("options", [])
        if mount["destination"].rstrip("/") == "/dev" and (
            kind in ("bind", "rbind") or "bind" in options or "rbind" in options
        ):
            return
    nodes: list[dict[str, Any]] = [
        {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666}
        for path, major, minor in _DEFAULT
    ]
    given = config.linux.get("devices", [])
    paths = {n["path"] for n in given}
    every = [(f"/dev: {n['path']}", n) for n in nodes if n["path"] not in paths]
    every += [(f"linux.devices[{i}]", n) for i, n in enumerate(given)]
    before = os.umask(0)
    try:
        for field, node in every:
            try:
                _node(root, node, field, nested="user" in config.namespaces)
            except OSError as e:
                raise TeguError(f"{field}: {node['path']}: {(e.strerror or '').lower()}") from e
    finally:
        os.umask(before)
    for path, to in _LINKS:
        _link(root, path, to, replace=False)
    _link(root, "/dev/ptmx", "pts/ptmx", replace=True)


def _node(root: int, node: dict[str, Any], field: str, *, nested: bool) -> None:
    kind = _KINDS[node["type"]]
    number = os.makedev(node.get("major", 0), node.get("minor", 0))
    if kind == stat.S_IFIFO:
        number = 0
    at, name = parent(root, node["path"])
    try:
        if not nested or kind == stat.S_IFIFO:
            try:
                os.mknod(name, kind | (node.get("fileMode", 0o666) & 0o7777), number, dir_fd=at)
            except FileExistsError:
                _same(at, name, kind, number, field)
            except PermissionError:
                nested = True
            else:
                ids = (node.get("uid", 0), node.get("gid", 0))
                os.chown(name, *ids, dir_fd=at, follow_symlinks=False)
        if nested and kind != stat.S_IFIFO:
            _show(root, node["path"], kind, number)
    finally:
        os.close(at)


def _same(at: int, name: str, kind: int, number: int, field: str) -> None:
    st = os.stat(name, dir_fd=at, follow_symlinks=False)
    if stat.S_IFMT(st.st_mode) != kind or (st.st_rdev != number and kind != stat.S_IFIFO):
        raise ConfigError(f"{field}: {name} is there already and is something else")


def _show(root: int, path: str, kind: int, number: int) -> None:
    """Show the host's device at `path` in the container."""
    source = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        st = os.fstat(source)
        if stat.S_IFMT(st.st_mode) != kind or st.st_rdev != number:
            raise OSError(errno.ENODEV, "the host has another device there", path)
        target = ensure(root, path, directory=False)
        try:
            fd = mountapi.detached(source)
            try:
                mountapi.attach(fd, target)
            finally:
                os.close(fd)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _link(root: int, path: str, to: str, *, replace: bool) -> None:
    at, name = parent(root, path)
    try:
        if replace:
            with suppress(FileNotFoundError, IsADirectoryError, PermissionError, OSError):
                os.unlink(name, dir_fd=at)
        with suppress(FileExistsError):
            os.symlink(to, name, dir_fd=at)
    except OSError as e:
        raise TeguError(f"{path}: {(e.strerror or '').lower()}") from e
    finally:
        os.close(at)


def show_console(root: int, terminal: int) -> None:
    """Show the terminal (its container side) at /dev/console. Raises OSError, TeguError."""
    try:
        target = find(root, "/dev/console", os.O_PATH | os.O_NOFOLLOW)
        if stat.S_ISDIR(os.fstat(target).st_mode) or stat.S_ISLNK(os.fstat(target).st_mode):
            os.close(target)
            raise TeguError("/dev/console: not a place for a device")
    except FileNotFoundError:
        target = ensure(root, "/dev/console", directory=False)
    try:
        fd = mountapi.detached(terminal)
        try:
            mountapi.attach(fd, target)
        finally:
            os.close(fd)
    finally:
        os.close(target)
