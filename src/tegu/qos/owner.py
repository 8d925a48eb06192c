"""Who may write a group's settings: systemd for its units, anyone below what it delegated.

systemd.io/CGROUP_DELEGATION: a unit's own settings belong to systemd, which writes them again when
it likes; below a unit with Delegate=yes everything belongs to the unit.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from tegu.linux.cgroup2 import Hierarchy
from tegu.linux.settings import FileTarget, PropertyTarget, Target

__all__ = ["Owner"]

_KUBELET = Path("var/lib/kubelet/cpu_manager_state")
_UNIT = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")
_PROPERTIES = {
    "cpu.weight": "CPUWeight",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.high": "MemoryHigh",
    "io.weight": "IOWeight",
}


class Owner:
    """Finds for each group and file the target through which it is written."""

    def __init__(self, hierarchy: Hierarchy, root: Path = Path("/")) -> None:
        self.hierarchy = hierarchy
        self.systemd = (root / "run/systemd/system").is_dir()
        self.kubelet_static = _static_kubelet(root / _KUBELET)

    def unit(self, group: str) -> str | None:
        """Return the unit whose own group this is, if systemd manages it."""
        if not self.systemd or group == "/":
            return None
        parts = [p for p in group.split("/") if p]
        for depth in range(len(parts)):
            above = "/" + "/".join(parts[:depth])
            if depth and self._delegated(above):
                return None
        name = parts[-1]
        return name if name.endswith(_UNIT) else None

    def _delegated(self, group: str) -> bool:
        for name in ("trusted.delegate", "user.delegate"):
            with suppress(OSError, ValueError):
                if os.getxattr(self.hierarchy.directory(group), name) == b"1":
                    return True
        return False

    def target(self, group: str, file: str, *, key: str = "") -> Target:
        """Return how `file` of `group` is set."""
        unit = self.unit(group)
        if unit is not None and file in _PROPERTIES:
            return PropertyTarget(unit, _PROPERTIES[file])
        path = self.hierarchy.directory(group) / file
        if key:
            return FileTarget(path, "keyed", key)
        return FileTarget(path, "bytes" if file.startswith("memory.") else "flat")


def _static_kubelet(path: Path) -> bool:
    """Whether the kubelet pins processors itself (its state file names the policy)."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("policyName") == "static"
