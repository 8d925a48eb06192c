"""linux.seccomp as a filter program, made by libseccomp, the reference for it.

config-linux.md, "Seccomp"; seccomp(2); libseccomp's seccomp.h.
"""

from __future__ import annotations

import ctypes
import os

from tegu.errors import UnsupportedError
from tegu.oci.fields import ConfigError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ACTIONS", "ARCHITECTURES", "FLAGS", "OPERATORS", "compile_profile", "flags"]

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# libseccomp's names of architectures, from the specification's.
ARCHITECTURES = [
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
]
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_NO_SUCH = -1
_EEXIST = 17
_EDOM = 33
_EPERM = 1
_ATTR_OPTIMIZE = 8


class _Arg(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def flags(profile: dict[str, Any]) -> int:
    """Return the flags for seccomp(2). Raises UnsupportedError for one that is not supported."""
    mask = 0
    for i, name in enumerate(profile.get("flags", [])):
        if name not in FLAGS:
            raise UnsupportedError(f"linux.seccomp.flags[{i}]: {name}")
        mask |= FLAGS[name]
    return mask


def _action(name: str, number: int | None, field: str) -> int:
    if name not in ACTIONS:
        if name == "SCMP_ACT_NOTIFY":
            raise UnsupportedError(f"{field}: {name}: no system call is handed to an agent")
        raise ConfigError(f"{field}: {name or 'missing'}: no such action")
    if name not in _WITH_NUMBER:
        if number:
            raise ConfigError(f"{field}: {name} takes no errno")
        return ACTIONS[name]
    number = _EPERM if number is None else number
    if number > 0xFFFF:
        raise ConfigError(f"{field}: errno {number} is more than 65535")
    return ACTIONS[name] | number


def compile_profile(profile: dict[str, Any]) -> bytes:
    """Return the classic BPF program of `profile`.

    Raises ConfigError and UnsupportedError by the field's name, also without libseccomp.
    """
    try:
        lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as e:
        raise UnsupportedError(
            "linux.seccomp: the library libseccomp is not installed",
            hint="install the package libseccomp2",
        ) from e
    lib.seccomp_init.restype = ctypes.c_void_p
    flags(profile)
    at = "linux.seccomp"
    default = _action(
        profile.get("defaultAction", ""), profile.get("defaultErrnoRet"), f"{at}.defaultAction"
    )
    ctx = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(default)))
    if not ctx:
        raise ConfigError(f"{at}.defaultAction: libseccomp does not take it")
    try:
        for i, name in enumerate(profile.get("architectures", [])):
            _add_architecture(lib, ctx, name, f"{at}.architectures[{i}]")
        lib.seccomp_attr_set(ctx, _ATTR_OPTIMIZE, ctypes.c_uint32(2))
        for i, rule in enumerate(profile.get("syscalls", [])):
            _add_rule(lib, ctx, rule, default, f"{at}.syscalls[{i}]")
        with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "rb") as f:
            result = lib.seccomp_export_bpf(ctx, ctypes.c_int(f.fileno()))
            if result < 0:
                raise ConfigError(f"{at}: libseccomp: {os.strerror(-result).lower()}")
            f.seek(0)
            return f.read()
    finally:
        lib.seccomp_release(ctx)


def _add_architecture(lib: ctypes.CDLL, ctx: ctypes.c_void_p, name: str, field: str) -> None:
    if name not in ARCHITECTURES:
        raise ConfigError(f"{field}: {name}: no such architecture")
    short = name.removeprefix("SCMP_ARCH_").lower()
    lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    token = lib.seccomp_arch_resolve_name(short.encode())
    if token == 0:
        return  # one that this libseccomp does not know cannot be this machine's
    result = lib.seccomp_arch_add(ctx, ctypes.c_uint32(token))
    # One with another byte order than this machine's (EDOM) cannot run here either.
    if result < 0 and -result not in (_EEXIST, _EDOM, 22):
        raise ConfigError(f"{field}: {name}: {os.strerror(-result).lower()}")


def _add_rule(
    lib: ctypes.CDLL, ctx: ctypes.c_void_p, rule: dict[str, Any], default: int, at: str
) -> None:
    action = _action(rule.get("action", ""), rule.get("errnoRet"), f"{at}.action")
    if not rule.get("names"):
        raise ConfigError(f"{at}.names: missing")
    if action == default:
        return  # libseccomp refuses a rule that says what is so without it
    arguments = []
    for i, arg in enumerate(rule.get("args", [])):
        op = arg.get("op", "")
        if op not in OPERATORS:
            raise ConfigError(f"{at}.args[{i}].op: {op or 'missing'}: no such operator")
        if arg.get("index", 0) > 5:
            raise ConfigError(f"{at}.args[{i}].index: from 0 to 5")
        value, second = arg.get("value", 0), arg.get("valueTwo", 0)
        arguments.append(_Arg(arg.get("index", 0), OPERATORS[op], value, second))
    # libseccomp wants all conditions of a rule on different arguments. Where two are on one, the
    # reference implementation makes each condition a rule of its own (they are then alternatives).
    indexes = [a.arg for a in arguments]
    together = len(set(indexes)) == len(indexes)
    groups = [arguments] if together else [[a] for a in arguments]
    for name in rule["names"]:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number == _NO_SUCH:
            continue
        for group in groups:
            array = (_Arg * len(group))(*group)
            result = lib.seccomp_rule_add_array(
                ctx, ctypes.c_uint32(action), number, len(group), array
            )
            if result < 0 and -result != _EEXIST:
                raise ConfigError(f"{at}: {name}: libseccomp: {os.strerror(-result).lower()}")
