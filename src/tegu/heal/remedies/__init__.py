"""The remedies, by name; each is loaded when it is asked for."""

from __future__ import annotations

import importlib

from tegu.errors import UsageError
from tegu.heal.remedy import Remedy

__all__ = ["REMEDIES", "find_remedy"]

REMEDIES: dict[str, tuple[str, str]] = {
    "resume-device": ("devices", "ResumeDevice"),
    "thaw": ("devices", "Thaw"),
    "truncate-deleted": ("files", "TruncateDeleted"),
    "clean-directory": ("files", "CleanDirectory"),
    "reclaim-zombies": ("reclaim", "ReclaimZombies"),
    "reclaim-dentries": ("reclaim", "ReclaimDentries"),
    "unmount-leaked": ("mounts", "UnmountLeaked"),
    "raise-memory": ("limits", "RaiseMemory"),
    "contain-memory": ("limits", "ContainMemory"),
    "raise-quota": ("limits", "RaiseQuota"),
    "lower-weight": ("limits", "LowerWeight"),
    "raise-tasks": ("limits", "RaiseTasks"),
    "raise-fd-limit": ("limits", "RaiseFdLimit"),
    "raise-conntrack": ("network", "RaiseConntrack"),
    "reuse-time-wait": ("network", "ReuseTimeWait"),
    "remove-netem": ("network", "RemoveNetem"),
    "restart-unit": ("units", "RestartUnit"),
    "forget-units": ("units", "ForgetUnits"),
    "limit-log": ("units", "LimitLog"),
    "set-clock": ("clocks", "SetClock"),
}
"""Module and class."""


def find_remedy(name: str) -> Remedy:
    """Return the remedy `name`; raises UsageError."""
    if name not in REMEDIES:
        raise UsageError(f"there is no remedy {name!r}", hint="see `tegu heal --list`")
    module, attribute = REMEDIES[name]
    remedy: Remedy = getattr(importlib.import_module(f"tegu.heal.remedies.{module}"), attribute)()
    return remedy
