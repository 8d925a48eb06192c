"""Crash dumps: when the kernel dies, a second one writes down what it died of.

`on` loads a capture kernel with a small initrd of our own into memory that was reserved at boot;
after a crash it saves the kernel's log and the filtered memory and restarts the machine. `report`
reads what was saved. The kernel's side is Documentation/admin-guide/kdump/kdump.rst.
"""

from tegu.host.kdump.config import CONFIG, Settings, Target, load_settings
from tegu.host.kdump.control import Status, crash_now, reserve, status, turn_off, turn_on
from tegu.host.kdump.report import Report, make_report

__all__ = [
    "CONFIG",
    "Report",
    "Settings",
    "Status",
    "Target",
    "crash_now",
    "load_settings",
    "make_report",
    "reserve",
    "status",
    "turn_off",
    "turn_on",
]
