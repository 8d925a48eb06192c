"""ELF64 relocatable objects, read and written: what gcc and `ld -r` make, and what a module is.

Formats: elf(5), the System V ABI's generic and x86-64 parts, and for live patches the kernel's
Documentation/livepatch/module-elf-format.rst. Sections and symbols are objects that point at one
another; indexes exist in files only, so that parts can be taken out and put together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from tegu.errors import BuildError

__all__ = [
    "SHF_ALLOC",
    "SHF_EXECINSTR",
    "SHF_MERGE",
    "SHF_STRINGS",
    "SHF_WRITE",
    "SHN_LIVEPATCH",
    "SHN_UNDEF",
    "SHT_NOBITS",
    "SHT_PROGBITS",
    "STB_GLOBAL",
    "STB_LOCAL",
    "STB_WEAK",
    "STT_FUNC",
    "STT_NOTYPE",
    "STT_OBJECT",
    "STT_SECTION",
    "ElfObject",
    "LivepatchRelocs",
    "Reloc",
    "Section",
    "Symbol",
]

# elf(5)
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA = 1, 2, 3, 4
SHT_NOBITS, SHT_REL, SHT_GROUP, SHT_SYMTAB_SHNDX = 8, 9, 17, 18
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 0x1, 0x2, 0x4
SHF_MERGE, SHF_STRINGS, SHF_INFO_LINK, SHF_LINK_ORDER, SHF_GROUP = 0x10, 0x20, 0x40, 0x80, 0x200
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON, SHN_XINDEX = 0, 0xFF00, 0xFFF1, 0xFFF2, 0xFFFF
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = 0, 1, 2, 3, 4
# include/uapi/linux/elf.h
SHF_RELA_LIVEPATCH, SHN_LIVEPATCH = 0x00100000, 0xFF20

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
_ET_REL = 1
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)


@dataclass(eq=False)
class Section:
    """A section with its content; `size` is in bytes and counts for SHT_NOBITS only."""

    name: str
    kind: int = SHT_PROGBITS
    flags: int = 0
    data: bytes = b""
    nobits: int = 0
    align: int = 1
    entsize: int = 0
    link: Section | None = None
    relocs: list[Reloc] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The bytes that it takes in memory."""
        return self.nobits if self.kind == SHT_NOBITS else len(self.data)


@dataclass(eq=False)
class Symbol:
    """A symbol: in `section`, or without one what `special` says (undefined, absolute, ...)."""

    name: str
    section: Section | None = None
    value: int = 0
    size: int = 0
    bind: int = STB_GLOBAL
    kind: int = STT_NOTYPE
    other: int = 0
    special: int = SHN_UNDEF

    @property
    def undefined(self) -> bool:
        """Whether another object has to define it."""
        return self.section is None and self.special == SHN_UNDEF


@dataclass
class Reloc:
    """A relocation: where in its section, what kind (R_X86_64_*), against what."""

    offset: int
    kind: int
    symbol: Symbol
    addend: int


@dataclass(eq=False)
class LivepatchRelocs:
    """Relocations of `section` that the kernel applies when the object `owner` is there."""

    owner: str
    section: Section
    relocs: list[Reloc]

    @property
    def name(self) -> str:
        """As module-elf-format.rst has it: `.klp.rela.OBJECT.SECTION`, the dots shared."""
        dot = "" if self.section.name.startswith(".") else "."
        return f".klp.rela.{self.owner}{dot}{self.section.name}"


@dataclass(eq=False)
class ElfObject:
    """A relocatable object without its indexes; `livepatch` has relocations of that kind."""

    machine: int
    flags: int = 0
    sections: list[Section] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)
    livepatch: list[LivepatchRelocs] = field(default_factory=list)

    @classmethod
    def parse(cls, data: bytes, name: str = "the object") -> ElfObject:
        """Read an object; BuildError names `name` when it is damaged or of another kind."""
        try:
            return _parse(data)
        except (struct.error, IndexError, ValueError, UnicodeDecodeError) as e:
            raise BuildError(f"{name} is no object that can be read: {e}") from e

    def to_bytes(self) -> bytes:
        """Write the object: sections in order, then relocations, symbols and names."""
        return _Writer(self).write()

    def section(self, name: str) -> Section | None:
        """Return the first section of that name."""
        return next((s for s in self.sections if s.name == name), None)


def _parse(data: bytes) -> ElfObject:
    head = _HEADER.unpack_from(data)
    if head[0][:6] != _IDENT[:6] or head[1] != _ET_REL:
        raise ValueError("not a 64-bit little-endian relocatable file")
    machine, offset, flags, count, names = head[2], head[6], head[7], head[12], head[13]
    if count == 0 or names >= count:
        raise ValueError("no section headers")
    if len(data) < offset + count * _SECTION.size:
        raise ValueError("section headers beyond its end")
    heads = [_SECTION.unpack_from(data, offset + i * _SECTION.size) for i in range(count)]
    bodies = [b"" if h[1] == SHT_NOBITS else _slice(data, h[4], h[5]) for h in heads]
    sections: dict[int, Section] = {}
    for i, h in enumerate(heads):
        if h[1] in (SHT_REL, SHT_SYMTAB_SHNDX):
            raise ValueError(f"unknown layout (a section of type {h[1]})")
        if i == 0 or h[1] in (SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_GROUP):
            continue
        sections[i] = Section(
            _text(bodies[names], h[0]),
            h[1],
            h[2] & ~SHF_GROUP,
            bodies[i],
            h[5] if h[1] == SHT_NOBITS else 0,
            max(1, h[8]),
            h[9],
        )
    for i, h in enumerate(heads):
        if i in sections and h[2] & SHF_LINK_ORDER:
            sections[i].link = sections.get(h[6])
    tables = [i for i, h in enumerate(heads) if h[1] == SHT_SYMTAB]
    symbols: list[Symbol] = []
    if tables:
        (table,) = tables
        symbols = _symbols(bodies[table], bodies[heads[table][6]], sections)
    result = ElfObject(machine, flags, list(sections.values()), symbols[1:])
    for i, h in enumerate(heads):
        if h[1] != SHT_RELA:
            continue
        target = sections.get(h[7])
        if target is None:
            raise ValueError("relocations of no section")
        relocs = [
            Reloc(at, info & 0xFFFFFFFF, _index(symbols, info >> 32), addend)
            for at, info, addend in _RELA.iter_unpack(bodies[i])
        ]
        if any(r.offset >= target.size for r in relocs):
            raise ValueError(f"a relocation beyond the end of {target.name}")
        if h[2] & SHF_RELA_LIVEPATCH:
            owner = _text(bodies[names], h[0]).split(".")[3]
            result.livepatch.append(LivepatchRelocs(owner, target, relocs))
        else:
            target.relocs += relocs
    return result


def _slice(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise ValueError("a section beyond its end")
    return data[offset : offset + size]


def _index(symbols: list[Symbol], index: int) -> Symbol:
    if index >= len(symbols):
        raise ValueError(f"there is no symbol {index}")
    return symbols[index]


def _text(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if offset > len(table) or end < 0:
        raise ValueError("a name beyond its table")
    return table[offset:end].decode()


def _symbols(table: bytes, names: bytes, sections: dict[int, Section]) -> list[Symbol]:
    found = []
    for name, info, other, index, value, size in _SYMBOL.iter_unpack(table):
        if index == SHN_XINDEX:
            raise ValueError("more than 65279 sections")
        section = sections.get(index) if index < SHN_LORESERVE else None
        found.append(
            Symbol(
                _text(names, name),
                section,
                value,
                size,
                info >> 4,
                info & 15,
                other,
                index if index >= SHN_LORESERVE else SHN_UNDEF,
            )
        )
    return found


class _Names:
    """A string table that grows."""

    def __init__(self) -> None:
        self.data = bytearray(1)
        self._known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self._known[text]


class _Writer:
    def __init__(self, obj: ElfObject) -> None:
        self.obj = obj
        self.index = {id(s): i + 1 for i, s in enumerate(obj.sections)}
        # elf(5): local symbols come before all others.
        self.symbols = sorted(obj.symbols, key=lambda s: s.bind != STB_LOCAL)
        self.symbol = {id(s): i + 1 for i, s in enumerate(self.symbols)}
        self.names, self.strings = _Names(), _Names()
        self.heads = [bytes(_SECTION.size)]
        self.body = bytearray(_HEADER.size)

    def write(self) -> bytes:
        obj = self.obj
        relas = [
            (f".rela{s.name}", SHF_INFO_LINK, s, s.relocs) for s in obj.sections if s.relocs
        ] + [
            (k.name, SHF_ALLOC | SHF_INFO_LINK | SHF_RELA_LIVEPATCH, k.section, k.relocs)
            for k in obj.livepatch
        ]
        table = len(obj.sections) + len(relas) + 1
        if table + 3 >= SHN_LORESERVE:
            raise BuildError("an object of more than 65279 sections")
        for s in obj.sections:
            link = self.index.get(id(s.link), 0) if s.flags & SHF_LINK_ORDER else 0
            self._section(s.name, s.kind, s.flags, s.data, s.align, s.entsize, link, 0, s.nobits)
        for name, flags, target, relocs in relas:
            self._section(
                name, SHT_RELA, flags, self._rela(relocs), 8, _RELA.size, table, self._at(target)
            )
        first = 1 + sum(s.bind == STB_LOCAL for s in self.symbols)
        body = self._symtab()
        self._section(".symtab", SHT_SYMTAB, 0, body, 8, _SYMBOL.size, table + 1, first)
        self._section(".strtab", SHT_STRTAB, 0, bytes(self.strings.data))
        self.names.add(".shstrtab")
        self._section(".shstrtab", SHT_STRTAB, 0, bytes(self.names.data))
        self.body += bytes(-len(self.body) % 8)
        offset = len(self.body)
        self.body += b"".join(self.heads)
        count = len(self.heads)
        self.body[: _HEADER.size] = _HEADER.pack(
            *(_IDENT, _ET_REL, obj.machine, 1, 0, 0, offset, obj.flags),
            *(_HEADER.size, 0, 0, _SECTION.size, count, count - 1),
        )
        return bytes(self.body)

    def _at(self, section: Section) -> int:
        return self.index[id(section)]

    def _section(
        self,
        name: str,
        kind: int,
        flags: int,
        data: bytes,
        align: int = 1,
        entsize: int = 0,
        link: int = 0,
        info: int = 0,
        nobits: int = 0,
    ) -> None:
        self.body += bytes(-len(self.body) % align)
        offset, size = len(self.body), nobits if kind == SHT_NOBITS else len(data)
        self.heads.append(
            _SECTION.pack(
                *(self.names.add(name), kind, flags, 0, offset, size, link, info, align, entsize)
            )
        )
        self.body += data

    def _rela(self, relocs: Iterable[Reloc]) -> bytes:
        return b"".join(
            _RELA.pack(r.offset, self.symbol.get(id(r.symbol), 0) << 32 | r.kind, r.addend)
            for r in relocs
        )

    def _symtab(self) -> bytes:
        body = bytearray(_SYMBOL.size)
        for s in self.symbols:
            index = s.special if s.section is None else self._at(s.section)
            name = self.strings.add(s.name)
            body += _SYMBOL.pack(name, s.bind << 4 | s.kind, s.other, index, s.value, s.size)
        return bytes(body)
