"""Make removed cgroups that files keep alive: each writes one file, then goes.

Usage: zombies.py DIRECTORY COUNT BYTES
"""

import os
import sys
from pathlib import Path

where, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
base = Path("/sys/fs/cgroup/lab-zombies")
base.mkdir(exist_ok=True)
(base / "cgroup.subtree_control").write_text("+memory")
own = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].strip()
home = Path("/sys/fs/cgroup" + own)
for number in range(count):
    group = base / f"z{number}"
    group.mkdir()
    (group / "cgroup.procs").write_text("0")
    (where / f"file{number}").write_bytes(bytes(size))
    (home / "cgroup.procs").write_text("0")
    group.rmdir()
os.sync()
