"""A gVisor box's root and its configuration, in a mount namespace that ends with the box.

Below /tmp, which is the box's own here: t the template, d what the box writes (`disk` bytes at
most), r both as one, s what runsc keeps.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tegu.linux import libc, mountapi
from tegu.sandbox.native import find_hold
from tegu.sandbox.policy import CAPABILITIES
from tegu.sandbox.spec import BoxSpec
from tegu.sandbox.template import find_template
from tegu.sandbox.zygote import lay

__all__ = ["BUNDLE", "ROOT", "STATE", "furnish", "holder", "process_of", "write_config"]

ROOT = Path("/tmp/r")
STATE = Path("/tmp/s")
BUNDLE = STATE / "bundle"
_QUIET = libc.MS_NOSUID | libc.MS_NODEV
_TOP = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}
_HOLD = "/.tegu-hold"


def furnish(spec: BoxSpec) -> None:
    """Mount the box's root in this process's new mount namespace. Raises OSError, TeguError."""
    template = find_template(spec.template)
    index, mounts, fds = template.open(None)
    hold = find_hold()
    held = None if hold is None else hold.read_bytes()
    libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("box", "/tmp", "tmpfs", _QUIET, "mode=0700,size=64m")
    for name in "tdrs":
        Path("/tmp", name).mkdir()
    most = spec.limits.disk
    libc.mount("box", "/tmp/d", "tmpfs", _QUIET, f"size={most},nr_inodes={max(1024, most // 4096)}")
    for name in ("u", "w"):
        Path("/tmp/d", name).mkdir(mode=0o755)
    if index is not None:
        mountapi.attach(fds[index], "/tmp/t")
    for path, kind, content in template.skeleton:
        lay(f"/tmp/t{path}", kind, content)
    overlay = "lowerdir=/tmp/t,upperdir=/tmp/d/u,workdir=/tmp/d/w"
    libc.mount("overlay", str(ROOT), "overlay", _QUIET, overlay)
    for name, mode in _TOP.items():
        if not (ROOT / name).is_dir():
            (ROOT / name).mkdir()
            (ROOT / name).chmod(mode)
    if held is not None:
        (ROOT / _HOLD[1:]).write_bytes(held)
        (ROOT / _HOLD[1:]).chmod(0o555)
    for inside, at in mounts:
        mountapi.attach(fds[at], f"{ROOT}{inside}")
    for fd in fds:
        os.close(fd)
    if spec.read_only:
        mountapi.set_attributes(str(ROOT), mountapi.MOUNT_ATTR_RDONLY)
        for name in ("tmp", "run"):
            own = Path("/tmp/d", name)
            own.mkdir()
            own.chmod(0o1777 if name == "tmp" else 0o755)
            libc.mount(str(own), f"{ROOT}/{name}", "", libc.MS_BIND)
    BUNDLE.mkdir(parents=True)
    # Its own processes alone, by the numbers that they have here.
    libc.mount("proc", "/proc", "proc", _QUIET | libc.MS_NOEXEC)


def holder() -> list[str]:
    """Return the program that is a living box's first process."""
    if (ROOT / _HOLD[1:]).exists():
        return [_HOLD]
    return ["/bin/sh", "-c", "while :; do sleep 3600; done"]


def process_of(
    spec: BoxSpec, argv: list[str], env: dict[str, str], cwd: str, ids: list[int]
) -> dict[str, Any]:
    """Return a program as OCI's process: what root keeps are the capabilities of containers."""
    names = [f"CAP_{name.upper()}" for name in CAPABILITIES]
    sets = ("bounding", "effective", "permitted", "inheritable")
    return {
        "user": {
            "uid": ids[0] if ids else 0,
            "gid": ids[1] if ids else 0,
            "additionalGids": ids[2:],
        },
        "args": argv,
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": cwd,
        "capabilities": {} if ids and ids[0] else dict.fromkeys(sets, names),
        "noNewPrivileges": True,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": spec.limits.files, "soft": spec.limits.files},
            {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        ],
    }


def write_config(spec: BoxSpec, process: dict[str, Any]) -> None:
    """Write the bundle's config.json."""
    bind = {"type": "bind", "options": ["bind", "rw"]}
    names = ("tmp", "run") if spec.read_only else ("tmp",)
    config = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(ROOT), "readonly": spec.read_only},
        "hostname": spec.hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            # Named, or runsc would put a tmpfs of its own there, which no limit counts.
            *({"destination": f"/{n}", "source": f"{ROOT}/{n}", **bind} for n in names),
        ],
        "linux": {"namespaces": [{"type": n} for n in ("pid", "network", "ipc", "uts", "mount")]},
    }
    BUNDLE.joinpath("config.json").write_text(json.dumps(config))
    shutil.rmtree(STATE / "root", ignore_errors=True)
