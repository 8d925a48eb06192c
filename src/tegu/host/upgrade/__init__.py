"""Upgrades that can be undone: the root of yesterday is kept, and boots again when today's fails.

On a btrfs root `upgrade` makes a snapshot, and makes it what the machine boots, *before* apt
changes anything: power cut at any moment of it, the machine is what it was. When all is in place
the changed root becomes the default again, on trial: its first boot hands the default back to the
snapshot until the machine has proved well (`boot_begins`, `boot_proved`). So one switch of btrfs'
default subvolume, which is atomic, decides what the machine is.

On the immutable layout the other slot is written instead: see `tegu.host.upgrade.slots`.
"""

from tegu.host.upgrade.apt import Update, available
from tegu.host.upgrade.choose import (
    boot_begins,
    boot_proved,
    preview,
    roll_back,
    upgrade,
)
from tegu.host.upgrade.outcome import Outcome
from tegu.host.upgrade.state import Event, history

__all__ = [
    "Event",
    "Outcome",
    "Update",
    "available",
    "boot_begins",
    "boot_proved",
    "history",
    "preview",
    "roll_back",
    "upgrade",
]
