"""What is compiled: the launcher, which makes boxes and starts programs in them, and the first
process of microVMs, each a small static program.

`box.c` is built with the package where there is a C compiler (hatch_build.py). Without it the same
is done in Python (zygote, inside, init), as strictly held and some milliseconds slower.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ["find_guest", "find_hold", "find_launcher", "open_launcher"]

_MFD_EXEC = 0x10  # linux/memfd.h, Linux 6.3


def find_launcher() -> Path | None:
    """Return the compiled program, or None where it was not built."""
    path = Path(__file__).with_name("tegu-box")
    return path if os.access(path, os.X_OK) else None


def find_guest() -> Path | None:
    """Return the first process of microVMs (guest.c), or None where it was not built."""
    path = Path(__file__).with_name("tegu-guest")
    return path if path.is_file() else None


def find_hold() -> Path | None:
    """Return the first process of gVisor boxes that live on (hold.c), or None."""
    path = Path(__file__).with_name("tegu-hold")
    return path if path.is_file() else None


def open_launcher(path: Path) -> int:
    """Return a descriptor of a sealed copy in memory that may be started and not read.

    So boxes hold no file of the host's as their first process's /proc/self/exe, and what the kernel
    shows of a process whose program its user may not read belongs to the host's root, not to root
    in the box (would_dump in the kernel's fs/exec.c). Raises OSError.
    """
    sealable = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        file = os.memfd_create("tegu-box", sealable | _MFD_EXEC)
    except OSError:
        file = os.memfd_create("tegu-box", sealable)
    try:
        with open(file, "wb", closefd=False) as f:
            f.write(path.read_bytes())
        os.fchmod(file, 0o111)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        # Anew: what is open for writing cannot be started.
        return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(file)
