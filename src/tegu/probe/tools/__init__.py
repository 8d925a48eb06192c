"""The probes, one module each; found here by name and loaded when asked for."""

from __future__ import annotations

import importlib

from tegu.errors import UsageError
from tegu.probe.tool import Tool

__all__ = ["TOOLS", "find_tool"]

TOOLS: dict[str, str] = {
    "runq": "RunQueue",
    "offcpu": "OffCpu",
    "profile": "Profile",
    "reclaim": "Reclaim",
    "blkio": "BlockLatency",
    "dwait": "UninterruptibleWait",
    "drops": "Drops",
    "census": "Census",
    "exits": "Exits",
    "syscalls": "SystemCalls",
    "fsync": "SlowSync",
    "irq": "Interrupts",
    "locks": "Locks",
    "files": "Files",
    "connections": "Connections",
    "dns": "Names",
    "signals": "SignalsSent",
    "throttle": "Throttling",
    "growth": "Growth",
    "ports": "Ports",
    "mounts": "Mounts",
    "groups": "ControlGroups",
    "clocks": "Clocks",
    "load": "Load",
    "usage": "Usage",
    "orders": "LargeBlocks",
    "units": "Units",
    "klog": "KernelLog",
}
"""Name and class; the module has the name."""


def find_tool(name: str) -> Tool:
    """Return the probe `name`; raises UsageError with the nearest one."""
    if name not in TOOLS:
        import difflib

        near = difflib.get_close_matches(name, TOOLS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see `tegu probe list`"
        raise UsageError(f"there is no probe {name!r}", hint=hint)
    module = importlib.import_module(f"tegu.probe.tools.{name}")
    tool: Tool = getattr(module, TOOLS[name])()
    return tool
