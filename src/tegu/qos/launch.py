"""Running a command in a class: a group of its own, below ours or as a scope of systemd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tegu.errors import QosError, UsageError
from tegu.linux.cgroup2 import Hierarchy, write_once
from tegu.process import run
from tegu.qos.policy import ClassPolicy
from tegu.qos.static import bfq_weight

__all__ = ["run_in_class"]

_PATIENCE = 5.0


def run_in_class(
    argv: Sequence[str], policy: ClassPolicy, hierarchy: Hierarchy, *, systemd: bool | None = None
) -> int:
    """Run `argv` with the settings of `policy` and return its exit code (128 + N for signal N).

    Under systemd the command becomes a scope in `tegu_CLASS.slice`, which has the settings, so that
    it competes beside other slices. Elsewhere it starts in a group `/tegu-CLASS/PID` that is
    removed at its end. Raises QosError when the group cannot be made, UsageError when the command
    cannot be started.
    """
    if shutil.which(argv[0]) is None:
        raise UsageError(f"there is no program {argv[0]}")
    if Path("/run/systemd/system").is_dir() if systemd is None else systemd:
        return _wait(_scope(argv, policy))
    hierarchy.require("cpu")
    return _in_own_group(argv, policy, hierarchy)


def _scope(argv: Sequence[str], policy: ClassPolicy) -> subprocess.Popen[bytes]:
    # With a dash it would be below tegu.slice, and its rank with it.
    slice_name = f"tegu_{policy.name}.slice"
    settings = []
    if policy.idle:
        settings.append("CPUWeight=idle")
    elif policy.weight is not None:
        settings.append(f"CPUWeight={policy.weight}")
    if policy.io_weight is not None:
        settings.append(f"IOWeight={policy.io_weight}")
    if policy.memory_low is not None:
        settings.append(f"MemoryLow={policy.memory_low}")
    if settings:
        run(["systemctl", "set-property", "--runtime", slice_name, *settings], timeout=60)
    command = ["systemd-run", "--scope", "--quiet", "--collect", f"--slice={slice_name}"]
    return subprocess.Popen([*command, "--", *argv])


def _in_own_group(argv: Sequence[str], policy: ClassPolicy, hierarchy: Hierarchy) -> int:
    parent = hierarchy.root / f"tegu-{policy.name}"
    group = parent / str(os.getpid())
    try:
        parent.mkdir(exist_ok=True)
        for name in sorted({"cpu", "io", "memory"} & hierarchy.controllers()):
            write_once(hierarchy.root / "cgroup.subtree_control", f"+{name}")
        _settings(parent, policy)
        group.mkdir()
    except OSError as e:
        raise QosError(f"cannot make the group {group}: {e.strerror}") from e
    reader, writer = os.pipe()
    try:
        # The child waits until it is in its group: nothing of it runs outside.
        script = 'read -r _ <&"$0"; exec "$@"'
        child = subprocess.Popen(["/bin/sh", "-c", script, str(reader), *argv], pass_fds=(reader,))
        write_once(group / "cgroup.procs", str(child.pid))
        os.write(writer, b"\n")
        return _wait(child)
    except OSError as e:
        raise QosError(f"cannot start in {group}: {e.strerror}") from e
    finally:
        os.close(reader)
        os.close(writer)
        _remove(group)
        with suppress(OSError):
            parent.rmdir()


def _settings(directory: Path, policy: ClassPolicy) -> None:
    if policy.idle:
        write_once(directory / "cpu.idle", "1")
    elif policy.weight is not None:
        write_once(directory / "cpu.weight", str(policy.weight))
    if policy.memory_low is not None:
        write_once(directory / "memory.low", str(policy.memory_low))
    if policy.io_weight is not None:
        for name, value in (
            ("io.weight", policy.io_weight),
            ("io.bfq.weight", bfq_weight(policy.io_weight)),
        ):
            if (directory / name).exists():
                write_once(directory / name, f"default {value}")


def _wait(child: subprocess.Popen[bytes]) -> int:
    def forward(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            child.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                continue  # the terminal sent it to the child as well
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _remove(group: Path) -> None:
    """End what the command left behind in the group, and remove it."""
    with suppress(OSError):
        write_once(group / "cgroup.kill", "1")
    end = time.monotonic() + _PATIENCE
    while group.is_dir() and time.monotonic() < end:
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.01)
