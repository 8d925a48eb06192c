"""System call filters (seccomp(2)): compiled once with libseccomp.

libseccomp knows the numbers of all architectures and makes a filter that searches in a tree; the
compiled program is plain bytes, which a new process loads with one call (confine.load_filter).
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from tegu.errors import UnsupportedError

__all__ = [
    "Compare",
    "Policy",
    "Rule",
    "compile_filter",
    "refusing",
    "syscall_name",
    "syscall_number",
]

# seccomp.h (libseccomp)
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000
_ATTR_OPTIMIZE = 8
_ATTR_BADARCH = 2
_OPERATORS = {"!=": 1, "<": 2, "<=": 3, "==": 4, ">=": 5, ">": 6, "&": 7}
_NO_SUCH = -1


@dataclass(frozen=True)
class Compare:
    """A condition on an argument: `"=="`, `"!="` ..., or `"&"`: `argument & mask == value`."""

    argument: int
    operator: str
    value: int
    mask: int = 0


@dataclass(frozen=True)
class Rule:
    """What happens to the system calls `names` when all conditions hold.

    `error` is the errno they fail with; None allows them.
    """

    names: Sequence[str]
    error: int | None = None
    when: Sequence[Compare] = ()


@dataclass(frozen=True)
class Policy:
    """A filter: rules, and the errno of every call that no rule mentions; None allows those."""

    rules: Sequence[Rule] = field(default_factory=tuple)
    otherwise: int | None = errnos.ENOSYS


class _Arg(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as e:
        raise UnsupportedError(
            "the library libseccomp is not installed", hint="install the package libseccomp2"
        ) from e
    lib.seccomp_init.restype = ctypes.c_void_p
    return lib


def syscall_number(name: str) -> int | None:
    """Return this architecture's number of a system call; None: it has no such call."""
    number: int = _library().seccomp_syscall_resolve_name(ctypes.c_char_p(name.encode()))
    # Calls of other architectures have numbers below -1 (seccomp_syscall_resolve_name(3)).
    return number if number >= 0 else None


def syscall_name(number: int) -> str | None:
    """Return the name of this architecture's system call; None: the library knows none."""
    lib = _library()
    lib.seccomp_arch_native.restype = ctypes.c_uint32
    lib.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    found = lib.seccomp_syscall_resolve_num_arch(
        ctypes.c_uint32(lib.seccomp_arch_native()), ctypes.c_int(number)
    )
    if not found:
        return None
    try:
        return ctypes.string_at(found).decode()
    finally:
        ctypes.CDLL(None).free(ctypes.c_void_p(found))


def compile_filter(policy: Policy) -> bytes:
    """Return the BPF program of `policy` for this machine's architecture.

    Calls through another architecture's entry (32-bit on x86-64, x32) kill the process. Names
    that this libseccomp does not know are left out, which denies them. Raises UnsupportedError
    without libseccomp.
    """
    lib = _library()
    ctx = ctypes.c_void_p(lib.seccomp_init(_action(policy.otherwise)))
    if not ctx:
        raise MemoryError("seccomp_init")
    try:
        _check(lib.seccomp_attr_set(ctx, _ATTR_BADARCH, ctypes.c_uint32(_KILL_PROCESS)))
        # A tree instead of a list, since libseccomp 2.5; without it the filter is only slower.
        lib.seccomp_attr_set(ctx, _ATTR_OPTIMIZE, ctypes.c_uint32(2))
        for rule in policy.rules:
            _add(lib, ctx, rule)
        with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "rb") as f:
            _check(lib.seccomp_export_bpf(ctx, ctypes.c_int(f.fileno())))
            f.seek(0)
            return f.read()
    finally:
        lib.seccomp_release(ctx)


def refusing(program: bytes, call: str, argument: int, values: Sequence[int], error: int) -> bytes:
    """Return `program` with a test before it: `call` fails with `error` when the low 32 bits of its
    argument are one of `values`, whatever `program` says of it.

    libseccomp cannot say "allowed unless" of masked arguments in one filter. The words are those of
    struct seccomp_data (linux/seccomp.h) on a little-endian machine.
    """
    number = _library().seccomp_syscall_resolve_name(call.encode())
    n = len(values)
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    words = [(load, 0, 0, 0), (equal, 0, n + 2, number), (load, 0, 0, 16 + 8 * argument)]
    words += [(equal, n - 1 - i, int(i == n - 1), value) for i, value in enumerate(values)]
    words.append((give, 0, 0, _ERRNO | error))
    return b"".join(struct.pack("=HBBI", *word) for word in words) + program


def _action(error: int | None) -> ctypes.c_uint32:
    return ctypes.c_uint32(_ALLOW if error is None else _ERRNO | error)


def _add(lib: ctypes.CDLL, ctx: ctypes.c_void_p, rule: Rule) -> None:
    action = _action(rule.error)
    conditions = (_Arg * len(rule.when))()
    for place, c in zip(conditions, rule.when, strict=True):
        first, second = (c.mask, c.value) if c.operator == "&" else (c.value, 0)
        place.arg, place.op, place.a, place.b = c.argument, _OPERATORS[c.operator], first, second
    for name in rule.names:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number == _NO_SUCH:
            continue
        _check(lib.seccomp_rule_add_array(ctx, action, number, len(rule.when), conditions), name)


def _check(result: int, what: str = "libseccomp") -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
