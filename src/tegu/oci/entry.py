"""Where `tegu-oci` begins: it starts itself once more, from a copy that nobody can write to.

A container's process can reach the runtime's executable as /proc/PID/exe, or be it, by having
itself started as /proc/self/exe; a root that is the host's could then overwrite the file
(CVE-2019-5736). Ours is the Python interpreter. So it runs from a read-only mount of that one file
which is attached nowhere: no path leads there, and once its descriptor is closed, at the start of
the program, the kernel lets nobody change it any more (mount_setattr(2) needs a mount namespace
that it belongs to). Who may not mount runs from a sealed copy in memory (memfd_create(2)).
"""

from __future__ import annotations

import os
import sys

__all__ = ["gvisor", "main", "protected"]

_F_GET_SEALS = 1034
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # no more seals, no shrinking, growing, writing
_F_ADD_SEALS = 1033


def protected() -> bool:
    """Whether this process's executable cannot be written to by way of the process."""
    import fcntl

    exe = "/proc/self/exe"
    if os.statvfs(exe).f_flag & os.ST_RDONLY:
        return True
    fd = os.open(exe, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False  # no file in memory
    finally:
        os.close(fd)


def _copy() -> int:
    """Return a descriptor of the interpreter that cannot be written to."""
    from tegu.linux import mountapi

    try:
        return mountapi.detached("/proc/self/exe", read_only=True)
    except OSError:
        return _sealed()


def _sealed() -> int:
    import fcntl

    fd = os.memfd_create("tegu-oci", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    source = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(fd, source, None, 1 << 30):
            pass
    finally:
        os.close(source)
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    return fd


def gvisor() -> int:
    """The console script `tegu-oci-gvisor`: callers name a runtime by its path, without options."""
    sys.argv[1:1] = ["--class", "gvisor"]
    return main()


def main() -> int:  # noqa: RET503 - execve does not return
    """Start the runtime, protected; the console script `tegu-oci`."""
    if protected():
        from tegu.oci.command import main as run

        return run(sys.argv[1:])
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    # Isolated (-I) from the caller's PYTHON* variables and directory, and without the site module.
    argv = [sys.executable, "-I", "-S", script, *sys.argv[1:]]
    os.execve(_copy(), argv, os.environ)
