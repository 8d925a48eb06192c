"""linux.sysctl: settings of the kernel that belong to the container's own namespaces.

Written through the host's /proc, which was looked at, before the container's own is in reach: what
a container mounts there cannot lead a write elsewhere (CVE-2025-52881).
"""

from __future__ import annotations

import os

from tegu.errors import UnsupportedError
from tegu.oci.fields import ConfigError
from tegu.oci.state import OciError

__all__ = ["namespace_of", "write_sysctls"]

_IPC = frozenset(
    [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ]
)


def namespace_of(name: str) -> str:
    """Return the type of namespace that the setting `name` belongs to, "" for the whole host."""
    name = name.replace("/", ".")
    if name.startswith("net."):
        return "network"
    if name in _IPC or name.startswith("fs.mqueue."):
        return "ipc"
    if name in ("kernel.domainname", "kernel.hostname"):
        return "uts"
    return ""


def write_sysctls(proc: int, settings: dict[str, str], namespaces: dict[str, str]) -> None:
    """Write `settings` below the descriptor of /proc. Raises TeguError by the setting's name."""
    for name, value in settings.items():
        field = f"linux.sysctl.{name}"
        kind = namespace_of(name)
        if not kind:
            raise UnsupportedError(f"{field}: is the whole host's, not a container's")
        if kind not in namespaces:
            raise ConfigError(f"{field}: needs a namespace of type {kind} in linux.namespaces")
        # A name with "/" may have dots that are part of it (net/ipv4/conf/eth0.1/...).
        path = name if "/" in name else name.replace(".", "/")
        if ".." in path.split("/"):
            raise ConfigError(f"{field}: no such setting")
        try:
            fd = os.open(f"sys/{path}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as e:
            raise OciError(f"{field}: {(e.strerror or '').lower()}") from e
