"""The private files of a machine: disk layer, firmware variables, key and seed.

They are made in the machine's own directory, or once and for all in the home of a persistent one;
there each appears whole or not at all.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from tegu.emulator.arch import MachineFacts
from tegu.errors import UnsupportedError, UsageError
from tegu.files import write_atomic
from tegu.lab.command import Parts
from tegu.lab.disk import Disk, inspect, make_overlay
from tegu.lab.firmware import find_uefi
from tegu.lab.options import QemuOptions
from tegu.lab.registry import MachineRecord, home_directory
from tegu.lab.seed import Seed
from tegu.lab.ssh import make_key

__all__ = ["furnish", "home_for"]


def home_for(name: str, disk: Disk) -> Path:
    """Return the directory of the persistent machine `name`, made at its first start.

    UsageError when its layer lies over another image than `disk`.
    """
    home = home_directory(name)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    layer = _layer(home)
    if layer.exists():
        below = inspect(layer, partitioned=False).backing
        if below is None or below != disk.path.resolve():
            raise UsageError(
                f"the machine {name} was made from {below}, not from {disk.path}",
                hint=f"use another name, or remove {home}",
            )
    return home


def furnish(
    record: MachineRecord,
    options: QemuOptions,
    facts: MachineFacts,
    accelerator: str,
    disk: Disk | None,
) -> tuple[MachineRecord, Parts]:
    """Make what is missing; return the record with the login user and key, and the parts."""
    place = record.home or record.directory
    record.console_log.unlink(missing_ok=True)  # that of an earlier start
    layer = _make_layer(place, disk, options.disk_size) if disk is not None else None
    code, variables = None, None
    if options.kernel is None and options.firmware == "uefi":
        files = find_uefi(facts)
        code, variables = files.code, place / "variables.fd"
        if not variables.exists():
            write_atomic(variables, files.variables.read_bytes(), mode=0o600)
    elif options.kernel is None and not facts.bios:
        raise UnsupportedError(f"{facts.name} machines have no BIOS", hint="use UEFI")
    seed = None
    if options.seed is not None:
        key, public = _make_key(place, record.name)
        seed = place / "seed.img"
        complete = _complete(options.seed, record.name, public, kept=options.persist)
        complete.write(seed)
        record = replace(record, user=_user(place, complete), identities=(key,))
    return record, Parts(accelerator, layer, seed, code, variables)


def _layer(place: Path) -> Path:
    return place / "disk.qcow2"


def _make_layer(place: Path, disk: Disk, size: int | None) -> Disk:
    layer = _layer(place)
    if not layer.exists():
        unfinished = place / "disk.new"
        make_overlay(disk, unfinished, size=size)
        unfinished.rename(layer)
    return inspect(layer, partitioned=False)


def _make_key(place: Path, name: str) -> tuple[Path, str]:
    key, public = place / "key", place / "key.pub"
    if not public.exists():
        key.unlink(missing_ok=True)  # ssh-keygen writes the public one last
        make_key(key, name)
    return key, public.read_text().strip()


def _complete(seed: Seed, name: str, public: str, *, kept: bool) -> Seed:
    """Fill in what the seed leaves to the machine; a persistent one is always the same instance."""
    return replace(
        seed,
        keys=(*seed.keys, public),
        hostname=seed.hostname or name,
        instance=seed.instance or (name if kept else f"{name}-{time.time_ns():x}"),
    )


def _user(place: Path, seed: Seed) -> str:
    """Return the login user: the one that was made at the first start."""
    remembered = place / "user"
    if not remembered.exists():
        write_atomic(remembered, seed.login_user())
    return remembered.read_text()
