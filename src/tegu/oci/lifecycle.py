"""Living containers: kill, pause, resume, ps, update, events, and what this runtime can do."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from tegu.errors import UnsupportedError, UsageError
from tegu.oci.cgroups import Cgroups
from tegu.oci.classes import GVisor
from tegu.oci.fields import check
from tegu.oci.state import OCI_VERSION, OciError, containers

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

    from tegu.oci.state import Container

__all__ = ["features", "kill", "listing", "pause", "processes", "resume", "stats", "update"]


def signal_number(text: str) -> int:
    """Return the number of a signal given as 15, TERM or SIGTERM. Raises UsageError."""
    if text.isdecimal() and 0 < int(text) < signal.NSIG:
        return int(text)
    name = text.upper().removeprefix("SIG")
    if name.startswith("RTMIN+") and name[6:].isdecimal():
        number = signal.SIGRTMIN + int(name[6:])
        if number <= signal.SIGRTMAX:
            return number
    with suppress(KeyError):
        return signal.Signals["SIG" + name]
    raise UsageError(f"no such signal: {text}")


def kill(container: Container, text: str, *, everyone: bool = False) -> None:
    """Send a signal to the first process, or to all. Raises OciError when it has ended."""
    number = signal_number(text)
    with container:
        groups = Cgroups.of(container.saved.get("cgroups", {}))
        if everyone:
            if groups.paths:
                groups.kill(number)
                return
            raise UnsupportedError("kill --all: the container has no control group")
        status = container.status()
        if status not in ("created", "running", "paused"):
            raise OciError(f"container not running: {container.name}")
        fd = container.open_pid()
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            raise OciError(f"container not running: {container.name}") from None
        finally:
            os.close(fd)
        if number == signal.SIGKILL:
            if _shares_pids(container):
                groups.kill()  # without a pid namespace of its own the others would live on
            if status == "paused":
                groups.freeze(False)  # version 1: what is frozen does not die


def _shares_pids(container: Container) -> bool:
    return not container.config().is_new("pid")


def pause(container: Container) -> None:
    """Stop all processes of a running container. Raises OciError, UnsupportedError."""
    _freeze(container, "running", frozen=True)


def resume(container: Container) -> None:
    """Let a paused container go on. Raises OciError, UnsupportedError."""
    _freeze(container, "paused", frozen=False)


def _freeze(container: Container, wanted: str, *, frozen: bool) -> None:
    with container:
        status = container.status()
        if status != wanted and not (frozen and status == "created"):
            what = "pause" if frozen else "resume"
            raise OciError(f"cannot {what} {container.name}: it is {status}")
        Cgroups.of(container.saved.get("cgroups", {})).freeze(frozen)


def processes(container: Container) -> list[int]:
    """Return the pids of a container's processes. Raises OciError when it has ended."""
    container.read()
    if container.status() == "stopped":
        raise OciError(f"container not running: {container.name}")
    groups = Cgroups.of(container.saved.get("cgroups", {}))
    if groups.paths:
        return sorted(groups.processes())
    return _same_pids(container.saved["pid"])


def _same_pids(first: int) -> list[int]:
    """Return the processes in the pid namespace of `first`: for a container without groups."""
    wanted = os.stat(f"/proc/{first}/ns/pid").st_ino
    if wanted == os.stat("/proc/self/ns/pid").st_ino:
        return [first]
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                if os.stat(f"/proc/{name}/ns/pid").st_ino == wanted:
                    found.append(int(name))
    return sorted(found)


def listing(root: str) -> list[dict[str, Any]]:
    """Return the states of all containers of `root`."""
    found: list[dict[str, Any]] = []
    for container in containers(root):
        with suppress(OciError):  # one that is removed meanwhile
            held = GVisor(container, {}, systemd=False)
            if held.here:
                found.append(held.state())
                continue
            container.read()
            found.append(container.state())
    return found


def update(container: Container, resources: Any) -> None:
    """Change a container's limits to `resources` (linux.resources, as parsed JSON).

    Raises ConfigError and UnsupportedError by the field's name.
    """
    wanted = check(resources, "linux.resources")
    with container:
        if container.status() == "stopped":
            raise OciError(f"container not running: {container.name}")
        groups = Cgroups.of(container.saved.get("cgroups", {}))
        if not groups.paths:
            raise UnsupportedError("update: the container has no control group")
        memory = wanted.get("memory", {})
        if memory.get("checkBeforeUpdate") and memory.get("limit", 0) > 0:
            used = groups.number("memory", "memory.current", "memory.usage_in_bytes")
            if used > memory["limit"]:
                raise OciError(
                    f"linux.resources.memory.limit: {memory['limit']}: {used} bytes are in use"
                )
        groups.limit(wanted, devices=True)


def stats(container: Container) -> dict[str, Any]:
    """Return what `events --stats` prints: one reading of the container's control groups."""
    container.read()
    if container.status() == "stopped":
        raise OciError(f"container not running: {container.name}")
    groups = Cgroups.of(container.saved.get("cgroups", {}))
    if not groups.paths:
        raise UnsupportedError("events: the container has no control group")
    usage = groups.number("cpuacct", "", "cpuacct.usage")
    if groups.second:
        usage = groups.keyed("cpu.stat").get("usage_usec", 0) * 1000
    data = {
        "cpu": {"usage": {"total": usage}},
        "memory": {
            "usage": {
                "usage": groups.number("memory", "memory.current", "memory.usage_in_bytes"),
                "max": groups.number("memory", "memory.peak", "memory.max_usage_in_bytes"),
                "limit": groups.number("memory", "memory.max", "memory.limit_in_bytes"),
            },
            "raw": groups.keyed("memory.stat"),
        },
        "pids": {
            "current": groups.number("pids", "pids.current", "pids.current"),
            "limit": groups.number("pids", "pids.max", "pids.max"),
        },
    }
    return {"type": "stats", "id": container.name, "data": data}


def features() -> dict[str, Any]:
    """Return what this runtime implements, as features.md of the specification shapes it."""
    from tegu.linux.confine import CAPABILITIES
    from tegu.oci.config import NAMESPACES
    from tegu.oci.hooks import HOOKS
    from tegu.oci.options import WORDS
    from tegu.oci.seccomp import ACTIONS, ARCHITECTURES, FLAGS, OPERATORS

    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": list(WORDS),
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": sorted(f"CAP_{name.upper()}" for name in CAPABILITIES),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": True,
                "rdma": True,
            },
            "seccomp": {
                "enabled": True,
                "actions": sorted(ACTIONS),
                "operators": sorted(OPERATORS),
                "archs": sorted(ARCHITECTURES),
                "knownFlags": sorted(FLAGS),
                "supportedFlags": sorted(FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "potentiallyUnsafeConfigAnnotations": [],
    }
