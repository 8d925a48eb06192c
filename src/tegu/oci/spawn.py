"""Processes in a container's namespaces: new ones, ones by path, those of another process.

namespaces(7), setns(2), clone3(2), user_namespaces(7).
"""

from __future__ import annotations

import fcntl
import os

from tegu.errors import TeguError
from tegu.linux import libc
from tegu.linux.clone import clone3
from tegu.oci.config import NAMESPACES
from tegu.oci.fields import ConfigError
from tegu.oci.state import OciError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tegu.oci.config import Config

__all__ = ["born", "map_ids", "open_namespaces"]

_NSFS_MAGIC = 0x6E736673
_NS_GET_NSTYPE = 0xB703


def open_namespaces(config: Config) -> list[tuple[int, int]]:
    """Open the namespaces given by path; returns (kind, descriptor), the user's own last.

    Raises ConfigError when one is not there or of another kind.
    """
    found: list[tuple[int, int]] = []
    for i, namespace in enumerate(config.linux.get("namespaces", [])):
        path = namespace.get("path", "")
        if not path:
            continue
        at = f"linux.namespaces[{i}].path: {path}"
        kind = NAMESPACES[namespace["type"]][0]
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            if libc.file_system(fd) != _NSFS_MAGIC or fcntl.ioctl(fd, _NS_GET_NSTYPE) != kind:
                os.close(fd)
                raise ConfigError(f"{at}: not a namespace of type {namespace['type']}")
        except OSError as e:
            raise ConfigError(f"{at}: {(e.strerror or '').lower()}") from e
        found.append((kind, fd))
    # The host's root may enter all others before it gives up what it may; a user's own namespace
    # is what lets that user enter the others.
    first = os.geteuid() != 0
    return sorted(found, key=lambda f: (f[0] == libc.CLONE_NEWUSER) != first)


def born(
    flags: int,
    joined: list[tuple[int, int]],
    child: Callable[[], None],
    offsets: dict[str, Any] | None = None,
) -> int:
    """Run `child` (which must never return) in a process of ours in namespaces; returns its pid.

    `flags` are the new ones, `joined` those to enter first: (kinds, descriptor). `offsets` are
    linux.timeOffsets of a new time namespace. Raises OciError.
    """
    if not joined and not flags & libc.CLONE_NEWTIME:
        try:
            made = clone3(flags)
        except OSError as e:
            raise OciError(_why(e)) from e
        if made.pid == 0:
            _never_return(child)
        os.close(made.pidfd)
        return made.pid
    # A helper enters first; what it then starts is our own child (CLONE_PARENT).
    reader, writer = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(reader)
        _help(flags, joined, child, offsets or {}, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as f:
        told = f.read().decode()
    os.waitpid(helper, 0)
    if not told.isdecimal():
        raise OciError(told or "the process that enters the namespaces was killed")
    return int(told)


def _never_return(child: Callable[[], None]) -> None:
    try:
        child()
    finally:
        os._exit(1)


def _help(
    flags: int,
    joined: list[tuple[int, int]],
    child: Callable[[], None],
    offsets: dict[str, Any],
    writer: int,
) -> None:
    try:
        for kind, fd in joined:
            try:
                libc.setns(fd, kind)
            except OSError as e:
                names = [n for n, (k, _) in NAMESPACES.items() if k & kind]
                text = (e.strerror or "").lower()
                raise OciError(f"cannot enter the namespace ({', '.join(names)}): {text}") from e
        if flags & libc.CLONE_NEWTIME:
            # Offsets can be set only as long as nobody is in it (time_namespaces(7)).
            libc.unshare(libc.CLONE_NEWTIME)
            flags &= ~libc.CLONE_NEWTIME
            _set_offsets(offsets)
        made = clone3(flags, as_sibling=True)
        if made.pid == 0:
            os.close(writer)
            _never_return(child)
        os.write(writer, str(made.pid).encode())
    except TeguError as e:
        os.write(writer, e.message.encode())
    except OSError as e:
        os.write(writer, _why(e).encode())
    finally:
        os._exit(0)


def _why(e: OSError) -> str:
    return f"cannot make the namespaces of linux.namespaces: {(e.strerror or '').lower()}"


def _set_offsets(offsets: dict[str, Any]) -> None:
    for clock, value in offsets.items():
        text = f"{clock} {value.get('secs', 0)} {value.get('nanosecs', 0)}"
        try:
            with open("/proc/self/timens_offsets", "w") as f:
                f.write(text)
        except OSError as e:
            raise OciError(f"linux.timeOffsets.{clock}: {(e.strerror or '').lower()}") from e


def map_ids(pid: int, config: Config) -> None:
    """Write linux.uidMappings and gidMappings for the new user namespace of `pid`.

    Directly where this is permitted, else with newuidmap(1) and newgidmap(1). Raises OciError.
    """
    for file, field, program in (
        ("uid_map", "uidMappings", "newuidmap"),
        ("gid_map", "gidMappings", "newgidmap"),
    ):
        lines = [
            (m.get("containerID", 0), m.get("hostID", 0), m.get("size", 0))
            for m in config.linux[field]
        ]
        text = "".join(f"{a} {b} {n}\n" for a, b, n in lines)
        try:
            with open(f"/proc/{pid}/{file}", "w") as f:
                f.write(text)
            continue
        except OSError as e:
            reason = (e.strerror or "").lower()
            if not isinstance(e, PermissionError):
                raise OciError(f"linux.{field}: {reason}") from e
        from tegu.process import require, run

        require(program, package="uidmap")
        numbers = [str(n) for line in lines for n in line]
        try:
            run([program, str(pid), *numbers], timeout=10)
        except TeguError as e:
            raise OciError(f"linux.{field}: {e.message}") from e
