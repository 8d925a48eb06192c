"""Kernel modules: what a module file says of itself, and loading and unloading it.

finit_module(2), delete_module(2); the format of `.modinfo` is `KEY=VALUE` strings, each with a NUL
(include/linux/module.h), the signature's mark is that of scripts/sign-file.c.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from tegu.errors import VerifyError
from tegu.linux.libc import syscall

__all__ = ["is_signed", "load_module", "modinfo", "unload_module"]

_SIGNED = b"~Module signature appended~\n"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_O_NONBLOCK = os.O_NONBLOCK


def modinfo(path: Path) -> dict[str, list[str]]:
    """Return the fields that the module at `path` carries, each with its values in order.

    Raises VerifyError when the file is no module.
    """
    data = path.read_bytes()
    try:
        text = _section(data, b".modinfo")
    except (struct.error, IndexError, ValueError) as e:
        raise VerifyError(f"{path} is no kernel module: {e}") from e
    fields: dict[str, list[str]] = {}
    for item in text.split(b"\0"):
        key, equals, value = item.partition(b"=")
        if equals:
            fields.setdefault(key.decode(errors="replace"), []).append(
                value.decode(errors="replace")
            )
    return fields


def _section(data: bytes, name: bytes) -> bytes:
    head = _HEADER.unpack_from(data)
    if head[0][:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    offset, count, names = head[6], head[12], head[13]
    rows = [_SECTION.unpack_from(data, offset + i * _SECTION.size) for i in range(count)]
    table = data[rows[names][4] : rows[names][4] + rows[names][5]]
    for row in rows:
        if table[row[0] : row[0] + len(name) + 1] == name + b"\0":
            if row[4] + row[5] > len(data):
                raise ValueError("it is cut off")
            return data[row[4] : row[4] + row[5]]
    raise ValueError(f"it has no section {name.decode()}")


def is_signed(path: Path) -> bool:
    """Whether a signature is appended; only the kernel can say whether it is a good one."""
    with path.open("rb") as f:
        f.seek(0, os.SEEK_END)
        f.seek(-min(len(_SIGNED), f.tell()), os.SEEK_END)
        return f.read() == _SIGNED


def load_module(path: Path) -> None:
    """finit_module(2) without parameters; OSError as the manual page has them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscall("finit_module", fd, ctypes.c_char_p(b""), 0, what=str(path))
    finally:
        os.close(fd)


def unload_module(name: str) -> None:
    """delete_module(2), never by force; OSError with EWOULDBLOCK when it is in use."""
    syscall("delete_module", ctypes.c_char_p(name.encode()), _O_NONBLOCK, what=name)
