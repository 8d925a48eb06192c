"""linux.resources.devices: the list of version 1's controller, or a BPF program for version 2.

cgroup-v1/devices.rst; cgroup-v2.rst, "Device controller"; bpf(2), struct bpf_cgroup_dev_ctx in
linux/bpf.h. Of several rules that speak of a device, the last one counts.
"""

from __future__ import annotations

import ctypes
import os
import struct

from tegu.linux import libc
from tegu.oci.fields import ConfigError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["attach_program", "device_lines", "program", "rules"]

# What every container may use besides its rules (config-linux.md, "Default Devices"), and making
# nodes, which alone opens nothing.
_ALWAYS = (
    ("c", -1, -1, "m"),
    ("b", -1, -1, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, -1, "rwm"),  # pts
)

Rule = tuple[bool, str, int, int, str]
"""allow, type ("a", "b", "c"), major and minor (-1: any), access (of "rwm")."""


def rules(devices: list[dict[str, Any]]) -> list[Rule]:
    """Return the rules in order: config.json's, then what every container may use.

    A node of linux.devices alone lets nobody in: clients add the rule. Raises ConfigError.
    """
    found: list[Rule] = []
    for i, device in enumerate(devices):
        at = f"linux.resources.devices[{i}]"
        kind = device.get("type", "") or "a"
        if kind not in ("a", "b", "c", "u"):
            raise ConfigError(f"{at}.type: one of a, b, c")
        access = device.get("access", "") or "rwm"
        if set(access) - set("rwm"):
            raise ConfigError(f"{at}.access: of the letters r, w, m")
        number = (device.get("major", -1), device.get("minor", -1))
        kind = "c" if kind == "u" else kind
        found.append((bool(device.get("allow")), kind, *number, access))
    if found:
        found += [(True, *rule) for rule in _ALWAYS]
    return found


def device_lines(found: list[Rule]) -> list[tuple[str, str]]:
    """Return (file, line) for the devices controller of version 1."""

    def number(n: int) -> str:
        return "*" if n < 0 else str(n)

    lines: list[tuple[str, str]] = []
    for allow, kind, major, minor, access in found:
        file = "devices.allow" if allow else "devices.deny"
        whole = kind == "a" and major < 0 and minor < 0 and set(access) == set("rwm")
        if whole:
            lines.append((file, "a"))
            continue
        rest = f"{number(major)}:{number(minor)} {access}"
        lines += [(file, f"{each} {rest}") for each in ("bc" if kind == "a" else kind)]
    return lines


# -- version 2: eBPF. Registers: r1 the context, r2 type, r3 access, r4 major, r5 minor.

_TYPES = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*


def _op(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def program(found: list[Rule]) -> bytes:
    """Return an eBPF program that answers 1 (allowed) or 0, for `found`.

    Without a rule that speaks of a device it is allowed, as in a new group of version 1.
    """
    out = [
        _op(0x61, 2, 1, 0),  # r2 = *(u32 *)(r1 + 0): access << 16 | type
        _op(0xBC, 3, 2),  # w3 = w2
        _op(0x54, 2, imm=0xFFFF),  # w2 &= 0xffff
        _op(0x74, 3, imm=16),  # w3 >>= 16
        _op(0x61, 4, 1, 4),  # r4 = major
        _op(0x61, 5, 1, 8),  # r5 = minor
    ]
    ended = False
    for allow, kind, major, minor, access in reversed(found):
        test: list[tuple[int, int, int]] = []  # (code of "skip if", register, value)
        body: list[bytes] = []
        if kind in _TYPES:
            test.append((0x56, 2, _TYPES[kind]))  # if w2 != type skip
        mask = sum(_ACCESS[a] for a in set(access))
        if mask != 7:
            # Allowed is only what asks for no more; denied is what asks for any of it.
            body = [_op(0xBC, 0, 3), _op(0x54, 0, imm=7 & ~mask if allow else mask)]
        if major >= 0:
            test.append((0x56, 4, major))
        if minor >= 0:
            test.append((0x56, 5, minor))
        verdict = [_op(0xB7, 0, imm=int(allow)), _op(0x95)]
        block: list[tuple[int, int, int] | bytes] = [*test, *body]
        if body:
            # if w0 != 0 skip (allow), if w0 == 0 skip (deny)
            block.append((0x56 if allow else 0x16, 0, 0))
        for i, step in enumerate(block):
            if isinstance(step, bytes):
                out.append(step)
            else:
                code, register, value = step
                rest = len(block) - i - 1 + len(verdict)
                out.append(_op(code, register, off=rest, imm=value))
        out += verdict
        if not test and not body:
            ended = True
            break  # nothing before this rule can count; the verifier wants no dead code
    if not ended:
        out += [_op(0xB7, 0, imm=1), _op(0x95)]
    return b"".join(out)


_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_QUERY, _PROG_BY_ID = 5, 8, 9, 16, 13
_TYPE_CGROUP_DEVICE, _ATTACH_DEVICE, _ALLOW_MULTI = 15, 6, 2


def _bpf(command: int, attributes: bytes) -> int:
    room = ctypes.create_string_buffer(attributes, max(len(attributes), 120))
    return libc.syscall("bpf", command, room, len(room), what="bpf")


def attach_program(group: str, code: bytes) -> None:
    """Let `code` judge the devices of the version 2 group at `group`, instead of what did so.

    Raises OSError (EPERM without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN).
    """
    text = ctypes.create_string_buffer(b"Apache-2.0")
    insns = ctypes.create_string_buffer(code, len(code))
    load = struct.pack(
        "=IIQQIIQII", _TYPE_CGROUP_DEVICE, len(code) // 8, ctypes.addressof(insns),
        ctypes.addressof(text), 0, 0, 0, 0, 0,
    )  # fmt: skip
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = _programs(directory)
        made = _bpf(_PROG_LOAD, load)
        try:
            _bpf(_PROG_ATTACH, struct.pack("=IIII", directory, made, _ATTACH_DEVICE, _ALLOW_MULTI))
        finally:
            os.close(made)
        for number in before:
            old = _bpf(_PROG_BY_ID, struct.pack("=III", number, 0, 0))
            try:
                _bpf(_PROG_DETACH, struct.pack("=III", directory, old, _ATTACH_DEVICE))
            finally:
                os.close(old)
    finally:
        os.close(directory)


def _programs(directory: int) -> list[int]:
    ids = (ctypes.c_uint32 * 64)()
    query = struct.pack("=IIIIQI", directory, _ATTACH_DEVICE, 0, 0, ctypes.addressof(ids), len(ids))
    room = ctypes.create_string_buffer(query, 120)
    libc.syscall("bpf", _PROG_QUERY, room, len(room), what="bpf")
    count = struct.unpack_from("=I", room, 24)[0]
    return list(ids[:count])
