"""Looks made by hand, for rules' tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tegu.heal import Look
from tegu.heal.snapshot import Group, Pressure, Process, Snapshot

__all__ = ["group", "look", "process"]


def group(path: str, *, cpu: int = 0, memory: int = 0, **values: int) -> Group:
    """A control group; `cpu` and `memory` are the microseconds that it waited."""
    known = {k.replace("__", "/").replace("_dot_", "."): v for k, v in values.items()}
    return Group(
        path,
        Path("/nonexistent"),
        known,
        {"cpu": Pressure(cpu, 0), "memory": Pressure(memory, 0), "io": Pressure()},
    )


def process(pid: int, comm: str = "program", state: str = "S", **more: Any) -> Process:
    """A process."""
    return replace(Process(pid, comm, state, 1, False, 0.0, 1), **more)


def look(
    before: list[Group] | None = None,
    after: list[Group] | None = None,
    *,
    first: Snapshot | None = None,
    last: Snapshot | None = None,
    root: Path = Path("/nonexistent"),
    **parts: Any,
) -> Look:
    """A look of ten seconds; `parts` are what it would read when asked."""
    made = Look(
        replace(first or Snapshot(), at=100.0, groups={g.path: g for g in before or []}),
        replace(last or Snapshot(), at=110.0, groups={g.path: g for g in after or before or []}),
        root=root,
    )
    made.__dict__["own_group"] = "/user.slice/session.scope"
    made.__dict__.update(
        {"log": [], "filesystems": [], "namespaces": [], "units": [], "servers": [], **parts}
    )
    return made
