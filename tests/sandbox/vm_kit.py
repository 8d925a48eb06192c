"""What tests of microVMs need: a guest's kernel, and a small tree to run in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tegu.sandbox.vm.drivers import why_not

APPLETS = [
    *("cat", "date", "dd", "echo", "false", "grep", "head", "hostname", "ls", "mkdir", "mv"),
    *("od", "ps", "rm", "seq", "sh", "sleep", "sync", "tail", "tr", "true", "wc", "yes"),
]


def guest_kernel(directory: Path) -> Path:
    """Return an image with its modules beside it: what the environment names, or /boot's."""
    package = os.environ.get("TEGU_KERNEL_DEB")
    if os.environ.get("TEGU_GUEST_KERNEL"):
        return Path(os.environ["TEGU_GUEST_KERNEL"])
    if package:
        subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
        return next((directory / "boot").glob("vmlinuz-*"))
    found = sorted(Path("/boot").glob("vmlinuz-*tegu*"))
    if not found:
        pytest.skip("no kernel for guests: TEGU_KERNEL_DEB names a package of one")
    return found[-1]


def small_tree(directory: Path) -> Path:
    """Make a root file system of busybox."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    for name in ("bin", "etc", "tmp", "root"):
        (directory / name).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin/busybox")
    for name in APPLETS:
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return directory


def skip_unless_possible() -> None:
    """Skip where this machine cannot run emulated guests at all."""
    reason = why_not("microvm-tcg")
    if reason:
        pytest.skip(reason)
