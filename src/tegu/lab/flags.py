"""From the words of a command line or a plan to the options of a machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from tegu.definition import Architecture, Firmware
from tegu.errors import UsageError
from tegu.lab.disk import parse_size
from tegu.lab.options import AcceleratorChoice, Bus, Forward, Network, QemuOptions
from tegu.lab.seed import DEFAULT_USER, Seed, read_public_key
from tegu.lab.userdata import (
    check_meta_data,
    check_network_config,
    check_user_data,
)

__all__ = ["accelerator_choice", "machine_options"]


def machine_options(
    *,
    image: Path | None,
    name: str | None = None,
    persist: bool = False,
    user: str | None = None,
    keys: Iterable[Path] = (),
    hostname: str | None = None,
    user_data: Path | None = None,
    meta_data: Path | None = None,
    network_config: Path | None = None,
    seed: bool = True,
    forwards: Iterable[str] = (),
    network: str = "user",
    memory: str = "1G",
    cpus: int = 2,
    disk: str | None = None,
    firmware: str = "uefi",
    bus: str = "virtio-blk",
    architecture: str | None = None,
    accelerator: str = "auto",
    icount: bool = False,
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
) -> QemuOptions:
    """Return checked options; UsageError names the word or the file that is wrong.

    Sizes are words such as "768M"; `keys`, `user_data`, `meta_data` and `network_config` are files.
    """
    for path in (kernel, initrd):
        if path is not None and not path.is_file():
            raise UsageError(f"{path} does not exist")
    what = None
    if seed:
        what = Seed(
            user=user or DEFAULT_USER,
            hostname=hostname or "",
            keys=tuple(read_public_key(k) for k in keys),
            user_data=_read(user_data, check_user_data),
            meta_data=_read(meta_data, check_meta_data),
            network_config=_read(network_config, check_network_config),
        )
    elif user or hostname or user_data or meta_data or network_config or list(keys):
        raise UsageError("without a seed, nobody tells the machine its user, keys or data")
    return QemuOptions(
        image=image,
        name=name,
        persist=persist,
        seed=what,
        forwards=tuple(Forward.parse(f) for f in forwards),
        network=_one_of("network", network, Network),
        memory=parse_size(memory),
        cpus=cpus,
        disk_size=parse_size(disk) if disk else None,
        firmware=_one_of("firmware", firmware, Firmware),
        bus=_one_of("bus", bus, Bus),
        architecture=_one_of("architecture", architecture, Architecture) if architecture else None,
        accelerator=accelerator_choice(accelerator),
        icount=icount,
        kernel=kernel,
        initrd=initrd,
        append=append,
    )


def accelerator_choice(word: str) -> AcceleratorChoice:
    """Return the accelerator that `word` names; UsageError for another word."""
    chosen: AcceleratorChoice = _one_of("accelerator", word, AcceleratorChoice)
    return chosen


def _read(path: Path | None, check: Any) -> bytes | None:
    """Return what is in the file, checked under its own name."""
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e
    check(data, str(path))
    return data


def _one_of(what: str, word: str, choice: Any) -> Any:
    known = get_args(choice)
    if word not in known:
        raise UsageError(f"no such {what}: {word!r}", hint=f"one of: {', '.join(known)}")
    return word
