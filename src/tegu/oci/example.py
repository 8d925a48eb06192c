"""The config.json that `tegu-oci spec` writes: a shell with few rights, to begin with."""

from __future__ import annotations

import os

from tegu.oci.state import OCI_VERSION

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["example"]

_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_MASKED = ["acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi",
           "timer_list", "timer_stats"]  # fmt: skip
_READ_ONLY = ["bus", "fs", "irq", "sys", "sysrq-trigger"]


def _mount(destination: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": list(options),
    }


def example(*, rootless: bool) -> dict[str, Any]:
    """Return it; `rootless` is for a user's own namespace, with the user as its root."""
    quiet = ("nosuid", "noexec", "nodev")
    pts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")
    sys = _mount("/sys", "sysfs", *quiet, "ro")
    if rootless:
        # A user may show the host's, but make none that shows the host's network.
        sys = _mount("/sys", "none", "rbind", *quiet, "ro", source="/sys")
    namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    linux: dict[str, Any] = {
        "namespaces": [{"type": n} for n in namespaces],
        "maskedPaths": [f"/proc/{n}" for n in _MASKED] + ["/sys/firmware"],
        "readonlyPaths": [f"/proc/{n}" for n in _READ_ONLY],
    }
    mounts = [
        _mount("/proc", "proc", *quiet),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", *pts, *(() if rootless else ("gid=5",))),
        _mount("/dev/shm", "tmpfs", *quiet, "mode=1777", "size=65536k", source="shm"),
        _mount("/dev/mqueue", "mqueue", *quiet),
        sys,
    ]
    if rootless:
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    else:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
        mounts.append(_mount("/sys/fs/cgroup", "cgroup", *quiet, "relatime", "ro"))
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "tegu",
        "mounts": mounts,
        "linux": linux,
    }
