"""The rules, one module each with a `RULE`; found here by name and loaded when they are asked for.

To add one: copy the nearest, give it its name, and add that to `RULES`.
"""

from __future__ import annotations

import importlib

from tegu.errors import UsageError
from tegu.heal.rule import Rule

__all__ = ["RULES", "find_rule"]

RULES = (
    "suspended_device",
    "frozen_filesystem",
    "slow_device",
    "failing_device",
    "inodes_full",
    "disk_full",
    "zombie_cgroups",
    "mount_leak",
    "oom_loop",
    "cache_thrash",
    "memory_neighbour",
    "cpu_throttle",
    "cpu_neighbour",
    "conntrack_full",
    "ports_exhausted",
    "packet_loss",
    "dead_dns",
    "fd_limit",
    "pid_limit",
    "soft_lockup",
    "log_flood",
    "clock_jump",
    "negative_dentries",
    "unit_leak",
    "failed_unit",
)


def find_rule(name: str) -> Rule:
    """Return the rule `name`; raises UsageError with the nearest one."""
    if name not in RULES:
        import difflib

        near = difflib.get_close_matches(name.replace("-", "_"), RULES, n=1)
        hint = f"did you mean {near[0]}?" if near else "see `tegu doctor --list`"
        raise UsageError(f"there is no rule {name!r}", hint=hint)
    rule: Rule = importlib.import_module(f"tegu.heal.rules.{name}").RULE
    return rule
