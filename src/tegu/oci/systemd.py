"""Control groups from systemd: a transient scope of its own for each container.

org.freedesktop.systemd1(5), StartTransientUnit; systemd.io/CGROUP_DELEGATION. The scope is
delegated, and the container lives in a group below it: what we write there systemd leaves alone.
"""

from __future__ import annotations

import os
import time

from tegu.errors import UnsupportedError
from tegu.oci.cgroups import Cgroups, Layout
from tegu.oci.fields import ConfigError
from tegu.oci.state import OciError

__all__ = ["scope"]

_BELOW = "container"


def _unit(path: str, name: str) -> tuple[str, str]:
    """Return slice and unit of linux.cgroupsPath "slice:prefix:name". Raises ConfigError."""
    if not path:
        return "", f"tegu-oci-{name}.scope"
    parts = path.split(":")
    if len(parts) != 3 or not parts[2]:
        raise ConfigError(f"linux.cgroupsPath: {path}: with systemd it is slice:prefix:name")
    above, prefix, last = parts
    if last.endswith(".slice"):
        raise UnsupportedError(f"linux.cgroupsPath: {path}: a container in a slice of its own")
    return above, f"{prefix}-{last}.scope" if prefix else f"{last}.scope"


def scope(path: str, name: str, pid: int) -> tuple[str, dict[str, str]]:
    """Have systemd put `pid` in a new scope; returns the unit's name and the container's groups.

    Raises ConfigError, UnsupportedError without systemd, OciError when systemd refuses.
    """
    from tegu.process import CommandError, require, run

    above, unit = _unit(path, name)
    if not os.path.isdir("/run/systemd/system"):
        raise UnsupportedError("--systemd-cgroup: systemd does not run here")
    require("busctl", package="systemd")
    properties = [
        *("Description", "s", f"OCI container {name}"),
        *("PIDs", "au", "1", str(pid)),
        *("Delegate", "b", "true"),
        *("DefaultDependencies", "b", "false"),
        *("CollectMode", "s", "inactive-or-failed"),
    ]
    count = 5
    if above:
        properties += ["Slice", "s", above]
        count += 1
    user = ["--user"] if os.geteuid() != 0 else []
    call = [
        *("busctl", *user, "--quiet", "call", "org.freedesktop.systemd1"),
        *("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"),
        *("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "replace"),
        *(str(count), *properties, "0"),
    ]
    layout = Layout.here()
    if not layout.second:
        raise UnsupportedError("--systemd-cgroup: needs cgroup version 2 alone")
    try:
        run(call, timeout=30)
    except CommandError as e:
        raise OciError(f"systemd makes no {unit}: {e.message}") from e
    return unit, _settle(layout, unit, pid)


def _settle(layout: Layout, unit: str, pid: int) -> dict[str, str]:
    """Wait until systemd has moved the process (the call only queues it), and make our group."""
    for attempt in range(1000):
        with open(f"/proc/{pid}/cgroup") as f:
            path = f.read().strip().rpartition("::")[2]
        if path.endswith(f"/{unit}"):
            break
        time.sleep(0.001 * min(attempt, 20))
    else:
        raise OciError(f"systemd did not move the container's process to {unit}")
    directory = layout.mounts[""] + path
    below = f"{directory}/{_BELOW}"
    os.makedirs(below, exist_ok=True)
    groups = Cgroups({"": below})
    groups.add(pid)
    # A group that hands controllers down must be empty itself: it is, now.
    with open(f"{directory}/cgroup.controllers") as f:
        offered = f.read().split()
    for controller in offered:
        with open(f"{directory}/cgroup.subtree_control", "w") as f:
            f.write(f"+{controller}")
    return groups.paths
