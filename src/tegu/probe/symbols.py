"""Names of addresses: kernel functions from /proc/kallsyms, a process's from its ELF files."""

from __future__ import annotations

import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["KernelSymbols", "Symbols", "elf_functions"]

_UNKNOWN = "[unknown]"
# The probe itself, on top of each stack that it takes.
_OURS = ("bpf_prog_", "bpf_trace_run", "bpf_trampoline_", "__bpf_trace", "__traceiter_")


class KernelSymbols:
    """The kernel's functions; read when first asked for (some 200,000 lines, kept in few bytes)."""

    def __init__(self, path: Path = Path("/proc/kallsyms")) -> None:
        self._path = path
        self._loaded = False
        self._lock = threading.Lock()
        self._addresses = array("Q")
        self._places = array("I")
        self._names = bytearray()

    def name(self, address: int) -> str:
        """Return `function` or `function [module]`."""
        self.load()
        i = bisect_right(self._addresses, address) - 1
        if i < 0:
            return _UNKNOWN
        start = self._places[i]
        return self._names[start : self._names.index(b"\n", start)].decode(errors="replace")

    def load(self) -> None:
        """Read them, unless that is done; another thread may be at it."""
        with self._lock:
            if not self._loaded:
                self._read()
                self._loaded = True

    def _read(self) -> None:
        names = bytearray()
        addresses, places = array("Q"), array("I")
        try:
            with self._path.open("rb") as lines:
                for line in lines:
                    address, kind, name = line.split(b" ", 2)
                    if kind in b"tTwW":
                        addresses.append(int(address, 16))
                        places.append(len(names))
                        names += name.replace(b"\t", b" ").rstrip(b"\n") + b"\n"
        except (OSError, ValueError):
            return
        if not any(addresses):
            return  # kptr_restrict: all are zero
        # In order but for modules and BPF programs, which come last: most need no sorting.
        ordered = 1
        while ordered < len(addresses) and addresses[ordered - 1] <= addresses[ordered]:
            ordered += 1
        tail = range(ordered, len(addresses))
        if tail and min(addresses[ordered:]) < addresses[ordered - 1]:
            ordered, tail = 0, range(len(addresses))
        order = sorted(tail, key=addresses.__getitem__)
        self._addresses = addresses[:ordered] + array("Q", (addresses[i] for i in order))
        self._places = places[:ordered] + array("I", (places[i] for i in order))
        self._names = names


class _Mapping(NamedTuple):
    start: int
    end: int
    offset: int
    path: str


class Symbols:
    """Names for stacks of the kernel and of processes; remembers what it has read."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root
        self.kernel_symbols = KernelSymbols(root / "kallsyms")
        self._maps: dict[int, list[_Mapping]] = {}
        self._files: dict[str, tuple[array[int], list[str], list[tuple[int, int, int]]]] = {}

    def prepare(self) -> None:
        """Read what takes longest before it is asked for."""
        self.kernel_symbols.load()

    def kernel(self, addresses: Iterable[int]) -> list[str]:
        """Name a kernel stack, innermost first."""
        # A return address may be the first byte after a function that does not return.
        found = [self.kernel_symbols.name(a - (i > 0)) for i, a in enumerate(addresses) if a]
        while found and found[0].startswith(_OURS):
            del found[0]
        return found

    def user(self, pid: int, addresses: Iterable[int]) -> list[str]:
        """Name a process's stack, innermost first; what has no symbol is `[file]`."""
        return [self._user(pid, a - (i > 0)) for i, a in enumerate(addresses) if a]

    def remember(self, pid: int) -> None:
        """Read what the process has mapped now; it may be gone when it is asked for."""
        found = self._mappings(pid)
        if found:
            self._maps[pid] = found

    def _user(self, pid: int, address: int) -> str:
        if pid not in self._maps:
            self._maps[pid] = self._mappings(pid)
        for mapping in self._maps[pid]:
            if mapping.start <= address < mapping.end:
                if not mapping.path.startswith("/"):
                    return mapping.path or "[anonymous]"
                name = self._function(pid, mapping.path, address - mapping.start + mapping.offset)
                return name or f"[{Path(mapping.path).name}]"
        return _UNKNOWN

    def _mappings(self, pid: int) -> list[_Mapping]:
        found = []
        try:
            for line in (self._root / str(pid) / "maps").read_text().splitlines():
                parts = line.split(maxsplit=5)
                if "x" not in parts[1]:
                    continue
                first, _, last = parts[0].partition("-")
                path = parts[5] if len(parts) > 5 else ""
                found.append(_Mapping(int(first, 16), int(last, 16), int(parts[2], 16), path))
        except (OSError, ValueError, IndexError):
            return found
        return found

    def _function(self, pid: int, path: str, offset: int) -> str:
        if path not in self._files:
            inside = self._root / str(pid) / "root" / path.lstrip("/")
            try:
                addresses, names, segments = elf_functions(inside.read_bytes())
            except (OSError, ValueError):
                addresses, names, segments = array("Q"), [], []
            self._files[path] = (addresses, names, segments)
        addresses, names, segments = self._files[path]
        for start, size, virtual in segments:
            if start <= offset < start + size:
                i = bisect_right(addresses, offset - start + virtual) - 1
                return names[i] if i >= 0 else ""
        return ""


def elf_functions(data: bytes) -> tuple[array[int], list[str], list[tuple[int, int, int]]]:
    """Return the functions of a 64-bit little-endian ELF file, and where it is loaded.

    Addresses in order, their names, and (file offset, size, virtual address) of each segment
    (elf(5)). Raises ValueError for what is no such file.
    """
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        phoff, shoff = struct.unpack_from("<QQ", data, 32)
        phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", data, 54)
        segments = []
        for i in range(phnum):
            kind, _, offset, virtual, _, size = struct.unpack_from(
                "<IIQQQQ", data, phoff + i * phentsize
            )
            if kind == 1:
                segments.append((offset, size, virtual))
        sections = [
            struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * shentsize) for i in range(shnum)
        ]
        found: dict[int, str] = {}
        for section in sections:
            if section[1] not in (2, 11):  # SHT_SYMTAB, SHT_DYNSYM
                continue
            names_at = sections[section[6]][4]
            start, size = section[4], section[5]
            for name, info, _, index, value, _ in struct.iter_unpack(
                "<IBBHQQ", data[start : start + size - size % 24]
            ):
                if info & 0xF in (2, 10) and index and value:  # STT_FUNC, STT_GNU_IFUNC
                    end = data.find(b"\0", names_at + name)
                    found[value] = data[names_at + name : end].decode(errors="replace")
    except (struct.error, IndexError) as e:
        raise ValueError("a damaged ELF file") from e
    order = sorted(found)
    return array("Q", order), [found[a] for a in order], segments
