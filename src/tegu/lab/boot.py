"""From an image or a definition to a machine that is up: what `tegu boot` does."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tegu.errors import MachineError, UsageError
from tegu.lab.interrupt import ended_by_signals
from tegu.lab.machine import Machine
from tegu.lab.options import QemuOptions
from tegu.lab.qemu import QemuMachine
from tegu.lab.registry import MachineRecord, Registry

__all__ = [
    "Booted",
    "Stopped",
    "boot",
    "cloud_init",
    "copy",
    "is_definition",
    "stop",
]

log = logging.getLogger(__name__)

_QUESTION: Final = "command -v cloud-init >/dev/null || exit 77; cloud-init status --wait --long"


@dataclass(frozen=True, slots=True)
class Booted:
    """A machine that stays up. `ssh_seconds` and `cloud_init` are None when not waited for.

    `cloud_init` is what `cloud-init status` says ("done", "error: ...", "disabled"), or
    "not installed". `notice` tells why emulation is used.
    """

    record: MachineRecord
    notice: str | None
    ssh_seconds: float | None
    cloud_init: str | None


def boot(
    options: QemuOptions,
    *,
    wait: bool = True,
    timeout: float = 300,
    registry: Registry | None = None,
    on_event: Callable[[str], None] = lambda _: None,
) -> Booted:
    """Boot a machine that stays up after this process; with `wait`, until cloud-init is done.

    When it does not come up, or is interrupted, the machine is taken down again and MachineError
    says how far it got. Waiting for SSH and for cloud-init take at most `timeout` seconds together.
    """
    with ended_by_signals(), QemuMachine(options, registry=registry) as machine:
        if machine.notice:
            on_event(machine.notice)
        seconds = status = None
        if wait and options.network != "none":
            on_event(f"{machine.name}: waiting for SSH")
            seconds = machine.wait_for_ssh(timeout)
            on_event(f"{machine.name}: waiting for cloud-init")
            status = cloud_init(machine, timeout=max(10.0, timeout - seconds))
        return Booted(machine.leave_running(), machine.notice, seconds, status)


@dataclass(frozen=True, slots=True)
class Stopped:
    """A machine that is off now; `clean` unless its power was taken away."""

    name: str
    clean: bool
    seconds: float


def stop(
    name: str, *, kill: bool = False, timeout: float = 120, registry: Registry | None = None
) -> Stopped:
    """Power `name` off and give back what it held; cut it off after `timeout` seconds."""
    machine = QemuMachine.attach(name, registry=registry)
    started = time.monotonic()
    clean = False
    try:
        if not kill:
            machine.power_off(timeout)
            clean = True
    except MachineError as e:
        log.info("%s", e.message)
    machine.release()
    return Stopped(name, clean, time.monotonic() - started)


def copy(source: str, target: str, *, timeout: float, registry: Registry | None = None) -> None:
    """Copy between this host and a machine; exactly one of the two is written `NAME:PATH`."""
    from_name, from_path = _split(source)
    to_name, to_path = _split(target)
    if (from_name is None) == (to_name is None):
        raise UsageError(
            "one of the two paths must be on a machine, the other here",
            hint="write NAME:PATH for a path on a machine, ./a:b for a local name with a colon",
        )
    if from_name is not None:
        machine = QemuMachine.attach(from_name, registry=registry)
        machine.copy_out(from_path, Path(to_path), timeout=timeout)
    elif to_name is not None:
        if not Path(from_path).exists():
            raise UsageError(f"{from_path} does not exist")
        machine = QemuMachine.attach(to_name, registry=registry)
        machine.copy_in(Path(from_path), to_path, timeout=timeout)


def _split(text: str) -> tuple[str | None, str]:
    """Return the machine and the path in `NAME:PATH`, or None and a local path."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and name and "/" not in name else (None, text)


def cloud_init(machine: Machine, *, timeout: float = 300) -> str:
    """Wait until cloud-init has done its work on `machine`; return its status, in words."""
    done = machine.run(_QUESTION, timeout=timeout)
    if done.exit_code == 77:
        return "not installed"
    found = re.search(r"^status: *(.+)$", done.stdout, re.MULTILINE)
    if found is None:
        raise MachineError(
            f"{machine.name}: cloud-init does not say how it is: {done.stderr.strip()[:200]}"
        )
    errors = re.search(
        r"^(?:recoverable_)?errors:[^\n]*\n(?:[A-Z]+:\n)?\s*- (.+)$", done.stdout, re.M
    )
    status = found[1].strip()
    if done.exit_code != 0:
        return f"{status}: {errors[1]}" if errors else f"{status} (exit code {done.exit_code})"
    return status


def is_definition(path: Path) -> bool:
    """True when `path` names a definition (a TOML file, or a directory with a tegu.toml)."""
    return path.suffix == ".toml" or (path / "tegu.toml").is_file()
