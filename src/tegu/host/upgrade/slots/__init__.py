"""Upgrades of the immutable layout: the slot that does not run is written, tried once, and kept.

`tegu.boot.slots` has what the disk looks like. What runs is never written to. The other slot is
made unusable first and whole last, by one block, so that a cut at any moment leaves a machine that
boots what it booted; systemd-boot's counting on the ESP gives a new slot one try, and a machine
that proves well takes the counter off.
"""

from tegu.host.upgrade.slots.machine import SlotMachine, slot_machine
from tegu.host.upgrade.slots.run import begin, prove, roll_back, upgrade, waiting
from tegu.host.upgrade.slots.source import Source
from tegu.host.upgrade.slots.writing import write_slot

__all__ = [
    "SlotMachine",
    "Source",
    "begin",
    "prove",
    "roll_back",
    "slot_machine",
    "upgrade",
    "waiting",
    "write_slot",
]
