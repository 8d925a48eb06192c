"""Kernel command lines: the capture kernel's from the running one's, and crashkernel= set."""

from __future__ import annotations

import platform

__all__ = ["capture_cmdline", "option", "with_option"]

# What is about the system that crashed, and would take the capture kernel's time or memory.
_DROPPED = frozenset(
    (
        *("BOOT_IMAGE", "crashkernel", "fsck.mode", "init", "initrd", "lsm", "panic", "quiet"),
        *("rdinit", "resume", "ro", "root", "rootflags", "rootfstype", "rw", "splash"),
        *("default_hugepagesz", "hugepages", "hugepagesz", "swiotlb", "transparent_hugepage"),
        *("irqaffinity", "isolcpus", "maxcpus", "nohz_full", "nr_cpus", "rcu_nocbs"),
    )
)
_DROPPED_PREFIXES = ("systemd.", "tegu.", "cgroup", "psi", "mem_encrypt")
# Documentation/admin-guide/kdump/kdump.rst; one CPU is enough and saves its memory; no module
# writes its own dump again; a panic of the capture kernel restarts the machine.
_ADDED = (
    "nr_cpus=1 reset_devices cgroup_disable=memory transparent_hugepage=never novmcoredd panic=10"
    " lsm= loglevel=5"
)
_X86 = "irqpoll mce=off"


def capture_cmdline(running: str, machine: str | None = None) -> str:
    """Return the capture kernel's command line from that of the running kernel."""
    kept = []
    for word in running.split():
        if word == "--":
            break  # What follows is for the system's init.
        name = word.partition("=")[0]
        if name not in _DROPPED and not name.startswith(_DROPPED_PREFIXES):
            kept.append(word)
    x86 = (machine or platform.machine()) == "x86_64"
    return " ".join([*kept, *_ADDED.split(), *(_X86.split() if x86 else ())])


def option(cmdline: str, name: str) -> str | None:
    """Return the last value of `name=` on a command line."""
    values = [w.partition("=")[2] for w in cmdline.split() if w.startswith(f"{name}=")]
    return values[-1] if values else None


def with_option(cmdline: str, name: str, value: str) -> str:
    """Return the command line with `name=value` and no other `name=`, at the end or before `--`."""
    words = [w for w in cmdline.split() if not w.startswith(f"{name}=")]
    at = words.index("--") if "--" in words else len(words)
    return " ".join([*words[:at], f"{name}={value}", *words[at:]])
