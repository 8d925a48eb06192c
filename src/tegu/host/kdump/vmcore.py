"""Cores as files: which form one has, whether it is whole, and the log inside an ELF one.

An ELF core is what /proc/vmcore is (fs/proc/vmcore.c, elf(5)): a VMCOREINFO note that names
addresses and sizes (Documentation/admin-guide/kdump/vmcoreinfo.rst), and the memory as PT_LOAD
segments. The log is a printk ring buffer (kernel/printk/printk_ringbuffer.h).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tegu.errors import TeguError, UnsupportedError

__all__ = ["ElfCore", "core_kind", "elf_log", "parse_vmcoreinfo"]

_FLAT_HEADER = 4096
_INCOMPLETE = 0x8  # DUMP_DH_COMPRESSED_INCOMPLETE, makedumpfile's diskdump_mod.h
_MAX_RECORDS = 1 << 20
_DAMAGED = "copy it again, or read dmesg.txt beside it"


def core_kind(path: Path) -> Literal["elf", "kdump", "flattened"]:
    """Return the form of a core; raises TeguError for anything else, and for one cut off.

    "kdump" is makedumpfile's compressed form, "flattened" the one it writes to pipes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(4096)
            if head.startswith(b"KDUMP   "):
                _check_kdump(path, head)
                return "kdump"
            if head.startswith(b"makedumpfile\0"):
                _check_flattened(path, size)
                return "flattened"
        if head.startswith(b"\x7fELF"):
            with path.open("rb") as f, ElfCore.open(f.fileno(), path):
                return "elf"
    except OSError as e:
        raise TeguError(f"cannot read {path}: {e.strerror}") from e
    raise TeguError(f"{path} is not a kernel's core: neither ELF nor makedumpfile's format")


def _check_kdump(path: Path, head: bytes) -> None:
    """struct disk_dump_header: signature, version, six names of 65 bytes, time, status."""
    if len(head) < 4096:
        raise TeguError(f"{path} is cut off after {len(head)} bytes", hint=_DAMAGED)
    (status,) = struct.unpack_from("<I", head, 8 + 4 + 6 * 65 + 6 + 16)
    if status & _INCOMPLETE:
        raise TeguError(
            f"{path} is incomplete: the disk was full while it was written", hint=_DAMAGED
        )


def _check_flattened(path: Path, size: int) -> None:
    """Each piece is (offset, length), big endian, then its bytes; (-1, -1) ends the file."""
    if size < _FLAT_HEADER + 16:
        raise TeguError(f"{path} is cut off after {size} bytes", hint=_DAMAGED)
    with path.open("rb") as data:
        data.seek(size - 16)
        if struct.unpack(">qq", data.read(16)) != (-1, -1):
            raise TeguError(f"{path} is cut off: its end mark is missing", hint=_DAMAGED)


def parse_vmcoreinfo(data: bytes) -> dict[str, str]:
    """Read VMCOREINFO's lines KEY=VALUE; others are passed over."""
    pairs = (line.partition("=") for line in data.decode("ascii", "replace").split("\n"))
    return {key: value.strip("\0") for key, equals, value in pairs if equals}


@dataclass(slots=True)
class ElfCore:
    """An ELF core, mapped. `loads` are (virtual address, physical address, offset, size)."""

    data: mmap.mmap
    loads: list[tuple[int, int, int, int]]
    info: dict[str, str]

    @classmethod
    def open(cls, fd: int, path: Path) -> ElfCore:
        """Map a core and read its headers; raises TeguError when damaged or cut off."""
        try:
            data = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        except ValueError as e:
            raise TeguError(f"{path} is empty") from e
        try:
            return cls(data, *_headers(data, path))
        except (struct.error, OverflowError) as e:
            data.close()
            raise TeguError(f"{path} is cut off or damaged: {e}", hint=_DAMAGED) from e
        except BaseException:
            data.close()
            raise

    def __enter__(self) -> ElfCore:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at a virtual address; raises TeguError when they are not there."""
        for virtual, _, offset, length in self.loads:
            # A segment without a virtual address of its own has ours, or all ones.
            if virtual and virtual <= address and address + size <= virtual + length:
                at = offset + address - virtual
                return self.data[at : at + size]
        raise TeguError(
            f"the core has no memory at {address:#x}", hint="it was left out or cut off"
        )

    def number(self, name: str) -> int:
        """Return a number of VMCOREINFO: SYMBOL(x) is hexadecimal, the others decimal."""
        try:
            return int(self.info[name], 16 if name.startswith("SYMBOL") else 10)
        except (KeyError, ValueError):
            raise TeguError(f"the core's VMCOREINFO has no {name}") from None


def _headers(data: mmap.mmap, path: Path) -> tuple[list[tuple[int, int, int, int]], dict[str, str]]:
    if data[4:6] != b"\x02\x01":
        raise UnsupportedError(f"{path}: cores of 32 bits or big endian")
    (kind,) = struct.unpack_from("<H", data, 16)
    if kind != 4:
        raise TeguError(f"{path} is not a core but another kind of ELF file")
    (offset,) = struct.unpack_from("<Q", data, 32)
    entry, count = struct.unpack_from("<HH", data, 54)
    loads: list[tuple[int, int, int, int]] = []
    info: dict[str, str] = {}
    for number in range(count):
        at = offset + number * entry
        (segment,) = struct.unpack_from("<I", data, at)
        start, virtual, physical, size = struct.unpack_from("<QQQQ", data, at + 8)
        if start + size > len(data):
            raise TeguError(
                f"{path} is cut off: {len(data)} bytes of at least {start + size}", hint=_DAMAGED
            )
        if segment == 1:
            loads.append((virtual, physical, start, size))
        elif segment == 4:
            info |= _notes(data[start : start + size])
    if not info:
        raise TeguError(f"{path} has no VMCOREINFO: it is not the core of a kernel")
    return loads, info


def _notes(data: bytes) -> dict[str, str]:
    at = 0
    while at + 12 <= len(data):
        name_size, size, _ = struct.unpack_from("<III", data, at)
        name = data[at + 12 : at + 12 + name_size].rstrip(b"\0")
        start = at + 12 + (name_size + 3 & ~3)
        if name == b"VMCOREINFO":
            return parse_vmcoreinfo(data[start : start + size])
        at = start + (size + 3 & ~3)
    return {}


def elf_log(path: Path) -> str:
    """Return the kernel's log inside an ELF core as dmesg(1) would print it.

    Raises TeguError when the core is cut off or its memory has no log.
    """
    with path.open("rb") as f, ElfCore.open(f.fileno(), path) as core:
        try:
            return "".join(f"{line}\n" for line in _records(core))
        except (struct.error, OverflowError) as e:
            raise TeguError(f"{path}: the log's buffer is damaged: {e}") from e


def _records(core: ElfCore) -> Iterator[str]:
    """Walk the ring: descriptor ids from the tail to the head, each with its text."""
    number, size = core.number, core.number
    ring = struct.unpack("<Q", core.read(number("SYMBOL(prb)"), 8))[0]

    def pointer(base: int, *fields: str) -> int:
        at = base + sum(number(f"OFFSET({field})") for field in fields)
        return int(struct.unpack("<Q", core.read(at, 8))[0])

    def word(data: bytes, offset: int, form: str) -> int:
        return int(struct.unpack_from(form, data, offset)[0])

    desc_ring = ring + number("OFFSET(printk_ringbuffer.desc_ring)")
    text_ring = ring + number("OFFSET(printk_ringbuffer.text_data_ring)")
    bits = word(core.read(desc_ring + number("OFFSET(prb_desc_ring.count_bits)"), 4), 0, "<I")
    text_bits = word(core.read(text_ring + number("OFFSET(prb_data_ring.size_bits)"), 4), 0, "<I")
    if not 1 <= bits <= 24 or not 1 <= text_bits <= 31:
        raise TeguError("the log's buffer is damaged: its size makes no sense")
    count, text_size = 1 << bits, 1 << text_bits
    desc_size, info_size = size("SIZE(prb_desc)"), size("SIZE(printk_info)")
    descs = core.read(pointer(desc_ring, "prb_desc_ring.descs"), count * desc_size)
    infos = core.read(pointer(desc_ring, "prb_desc_ring.infos"), count * info_size)
    texts = core.read(pointer(text_ring, "prb_data_ring.data"), text_size)
    counter = number("OFFSET(atomic_long_t.counter)")
    ids = []
    for field in ("tail_id", "head_id"):
        at = desc_ring + number(f"OFFSET(prb_desc_ring.{field})") + counter
        ids.append(word(core.read(at, 8), 0, "<Q"))
    tail, head = ids
    mask = (1 << 62) - 1  # The two highest bits of a descriptor's word are its state.
    for step in range(min(((head - tail) & mask) + 1, count, _MAX_RECORDS)):
        ident = (tail + step) & mask
        at = (ident % count) * desc_size
        state = word(descs, at + number("OFFSET(prb_desc.state_var)") + counter, "<Q")
        if state & mask != ident or state >> 62 not in (1, 2):  # committed, finalized
            continue
        block = at + number("OFFSET(prb_desc.text_blk_lpos)")
        begin = word(descs, block + number("OFFSET(prb_data_blk_lpos.begin)"), "<Q")
        end = word(descs, block + number("OFFSET(prb_data_blk_lpos.next)"), "<Q")
        info = (ident % count) * info_size
        length = word(infos, info + number("OFFSET(printk_info.text_len)"), "<H")
        stamp = word(infos, info + number("OFFSET(printk_info.ts_nsec)"), "<Q")
        if begin & 1 or end & 1:  # No text: an empty line, or one that had no room.
            text = b""
        else:
            start = begin % text_size
            if begin // text_size != end // text_size and end % text_size:
                start = 0  # A block that would wrap lies at the buffer's beginning.
            text = texts[start + 8 : start + 8 + length]  # After the descriptor's id.
        yield from _lines(stamp, text)


def _lines(stamp: int, text: bytes) -> Iterator[str]:
    head = f"[{stamp // 1_000_000_000:5d}.{stamp % 1_000_000_000 // 1000:06d}] "
    clean = re.sub(rb"[\x00-\x08\x0b-\x1f\x7f]", b"?", text).decode("utf-8", "replace")
    for line in clean.split("\n"):
        yield head + line
