#!/usr/bin/python3 -I
"""The only process of a guest without a disk: asks each probe whether it works, says so, ends."""

import ctypes
import json
import os
import sys
import traceback
from pathlib import Path

for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"),
                    ("cgroup2", "/sys/fs/cgroup")):  # fmt: skip
    Path(where).mkdir(parents=True, exist_ok=True)
    ctypes.CDLL(None).mount(b"none", where.encode(), kind.encode(), 0, None)
console = os.open("/dev/ttyS0", os.O_WRONLY)
sys.path.insert(0, "/tegu")
try:
    from tegu.probe.matrix import asked_here

    said = json.dumps(asked_here())
except Exception:  # noqa: BLE001 - whatever it is, the serial line is the only way to say it
    said = json.dumps({"trouble": traceback.format_exc()})
os.write(console, f"\n<listing>{said}</listing>\n".encode())
os.sync()
ctypes.CDLL(None).reboot(0x01234567)  # RB_AUTOBOOT, linux/reboot.h: qemu ends with -no-reboot
