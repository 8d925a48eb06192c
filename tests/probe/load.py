"""What the probes' tests do again and again: groups with something to see in them, and a watch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tegu.errors import TeguError
from tegu.probe import Settings, find_tool, watch
from tegu.probe.groups import CgroupNames

# How long a test waits for the kernel to show what it surely will; a loaded machine takes longer.
PATIENCE = 90


def needs_probe(name: str) -> None:
    """Skip the test, with the probe's own words, where it does not work."""
    from tegu.probe import availability

    try:
        reason = availability(find_tool(name))
    except TeguError as e:
        reason = e.message
    if reason:
        pytest.skip(f"{name} does not work on this machine: {reason}")


class Groups:
    """Control groups of the test's own, with processes that end with it."""

    def __init__(self, controller: str) -> None:
        self.names = CgroupNames(controller)
        assert self.names.root is not None
        # Not tegu-...: a supervisor of sandboxes sweeps those away.
        # A number of a process comes again, and a run that was killed leaves its groups.
        self.base = Path(tempfile.mkdtemp(prefix="probe-test-", dir=self.names.root))
        self.children: list[subprocess.Popen[bytes]] = []

    def make(self, name: str) -> str:
        """Make a group below our own and return its path as the probes say it."""
        (self.base / name).mkdir()
        self._pass_on((self.base / name).parent)
        return f"/{self.base.name}/{name}"

    def directory(self, group: str) -> Path:
        return self.base / group.removeprefix(f"/{self.base.name}/")

    def _pass_on(self, directory: Path) -> None:
        """Version 2 accounts in a group only for the controllers that its parent hands down."""
        if self.names.hierarchy == 0:
            for parent in (self.base.parent, self.base, directory):
                with suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text("+cpu +memory +io")

    def spawn(self, group: str, *argv: str, **how: Any) -> subprocess.Popen[bytes]:
        procs = self.directory(group) / "cgroup.procs"

        enter = ("/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(procs))
        child = subprocess.Popen((*enter, *argv), **how)
        self.children.append(child)
        return child

    def python(self, group: str, code: str, *argv: str) -> subprocess.Popen[bytes]:
        return self.spawn(group, sys.executable, "-c", code, *argv)

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        deepest_first = sorted((d for d in self.base.rglob("*") if d.is_dir()), reverse=True)
        for directory in [*deepest_first, self.base]:
            with suppress(OSError):
                directory.rmdir()


def limit(group: str, made: Groups, size: int) -> None:
    directory = made.directory(group)
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (directory / name).exists():
            (directory / name).write_text(str(size))
            return
    pytest.skip("no memory controller here")


def watch_until(
    name: str, settings: Settings, enough: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    """Run a probe until its events are enough, and return all its records."""
    stop = threading.Event()
    timer = threading.Timer(PATIENCE, stop.set)
    timer.start()
    records: list[dict[str, Any]] = []
    try:
        for record in watch(find_tool(name), settings, stop):
            records.append(record)
            if record["type"] == "event" and enough(records):
                stop.set()
    finally:
        timer.cancel()
    return records


def events(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in records if r["type"] == "event"]


def one_cpu() -> str:
    return str(min(os.sched_getaffinity(0)))


SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
