"""What a function's zygote may ask of the kernel: what a box may, and to fork into namespaces.

An invocation is under the filter of every box (tegu.sandbox.policy) besides. The zygote itself
needs more, and where it runs its author's code (load "early") that code has as much: mounts, and
new mount, pid and network namespaces, over a user namespace that owns nothing else. New user
namespaces it may not make.
"""

from __future__ import annotations

import errno

from tegu.linux import libc
from tegu.linux.seccomp import Compare, Policy, Rule, compile_filter, refusing
from tegu.sandbox.policy import TERMINAL_REQUESTS, box_policy

__all__ = ["ZYGOTE_CAPABILITIES", "invocation_filter", "zygote_filter"]

ZYGOTE_CAPABILITIES = ("sys_admin", "net_admin", "setuid", "setgid")
"""For mounts and namespaces, for loopback, for the change to an invocation's user."""
_FREED = frozenset(["mount", "umount2", "unshare", "setns"])
_LASTING = frozenset(["msgget", "semget", "shmget", "mq_open"])
"""What makes objects that outlive their maker, in a namespace that invocations have in common."""
_LOW = 0xFFFFFFFF
_NEW_NAMESPACES = 0x7E020080
_CLONED = libc.CLONE_NEWNS | libc.CLONE_NEWPID


def invocation_filter() -> bytes:
    """Return the compiled filter of an invocation: a box's, but for what would outlive it."""
    rules = [
        Rule([name for name in rule.names if name not in _LASTING], rule.error, rule.when)
        for rule in box_policy().rules
    ]
    program = compile_filter(Policy(rules))
    return refusing(program, "ioctl", 1, TERMINAL_REQUESTS, errno.EPERM)


def zygote_filter() -> bytes:
    """Return the compiled filter of a function's zygote."""
    rules = [
        Rule([name for name in rule.names if name not in _FREED], rule.error, rule.when)
        for rule in box_policy().rules
    ]
    rules += [
        Rule(["mount", "umount2"]),
        Rule(["clone"], when=[Compare(0, "&", _CLONED, mask=_NEW_NAMESPACES)]),
        Rule(["unshare"], when=[Compare(0, "&", libc.CLONE_NEWNET, mask=_LOW)]),
        Rule(["setns"], when=[Compare(1, "&", libc.CLONE_NEWNET, mask=_LOW)]),
    ]
    program = compile_filter(Policy(rules))
    return refusing(program, "ioctl", 1, TERMINAL_REQUESTS, errno.EPERM)
