"""What a process gives up for good: privileges, capabilities, being looked into.

capabilities(7), prctl(2), PR_SET_NO_NEW_PRIVS in Documentation/userspace-api/no_new_privs.rst.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from tegu.linux import libc

__all__ = [
    "CAPABILITIES",
    "bound_capabilities",
    "keep_capabilities",
    "load_filter",
    "no_new_privileges",
    "permitted_capabilities",
    "raise_ambient",
    "set_capabilities",
    "undumpable",
]

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_AMBIENT_RAISE = 2
_AMBIENT_CLEAR_ALL = 4
_SECCOMP_SET_MODE_FILTER = 1
_CAPABILITY_VERSION_3 = 0x20080522

# linux/capability.h, by number.
# fmt: off
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)
# fmt: on


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def no_new_privileges() -> None:
    """From here on no program gains privileges when it starts (set-user-ID, file capabilities)."""
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def undumpable() -> None:
    """Keep others of the same user out of this process: no ptrace, no /proc/PID/{mem,fd,exe}."""
    libc.prctl(_PR_SET_DUMPABLE, 0)


def keep_capabilities(keep: Iterable[str], *, bounding: bool = True) -> None:
    """Drop all capabilities but `keep` (names without "cap_").

    With `bounding` the bounding set loses them too, one system call of some ten microseconds for
    each; after `no_new_privileges` a program gains none from that set in any case (execve(2)
    then intersects what is permitted with what was).
    """
    numbers = {CAPABILITIES.index(name) for name in keep}
    if bounding:
        bound_capabilities(numbers)
    mask = sum(1 << n for n in numbers)
    set_capabilities(mask, mask, 0)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), with each set as a mask of capability numbers."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    for i in (0, 1):
        data[i].effective = effective >> 32 * i & 0xFFFFFFFF
        data[i].permitted = permitted >> 32 * i & 0xFFFFFFFF
        data[i].inheritable = inheritable >> 32 * i & 0xFFFFFFFF
    libc.syscall("capset", ctypes.byref(header), ctypes.byref(data))


def permitted_capabilities() -> int:
    """Return what this process may have effective, as a mask of capability numbers (capget(2))."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    libc.syscall("capget", ctypes.byref(header), ctypes.byref(data))
    return int(data[0].permitted) | int(data[1].permitted) << 32


def raise_ambient(mask: int) -> None:
    """Make `mask` the ambient set; each must be permitted and inheritable (capabilities(7))."""
    libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    for number in range(mask.bit_length()):
        if mask >> number & 1:
            libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)


def bound_capabilities(numbers: set[int]) -> None:
    """Drop all but `numbers` from the bounding set, for good."""
    for number in range(64):
        if number in numbers:
            continue
        try:
            libc.prctl(_PR_CAPBSET_DROP, number)
        except OSError:
            if number < len(CAPABILITIES) - 3:  # the last three are of Linux 5.8 and 5.9
                raise
            return


class _Program(ctypes.Structure):
    """struct sock_fprog, linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def load_filter(program: bytes, flags: int = 0) -> None:
    """Apply a compiled system call filter (tegu.linux.seccomp) to this process for good.

    Needs `no_new_privileges` first, or CAP_SYS_ADMIN. `flags` are SECCOMP_FILTER_FLAG_*.
    """
    prog = _Program(len(program) // 8, program)
    libc.syscall("seccomp", _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(prog))
