"""An object taken apart: functions and data as pieces, and what each refers to.

The objects compared are compiled with -ffunction-sections and -fdata-sections, so that most pieces
are a section of their own; those that the source puts in a named section share it and are told
apart by their symbols. A reference is known by what it points at (a piece and a distance in it, a
string's text, an outside name), not by a section and an offset, which change with every edit.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import BuildError, UnsupportedError
from tegu.kernel.livepatch.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_MERGE,
    SHF_STRINGS,
    SHF_WRITE,
    SHT_NOBITS,
    STT_FUNC,
    STT_OBJECT,
    STT_SECTION,
    ElfObject,
    Section,
    Symbol,
)
from tegu.process import require, run

__all__ = [
    "Constant",
    "Entry",
    "Outside",
    "Piece",
    "Ref",
    "Taken",
    "is_exit",
    "is_init",
    "take_apart",
]

_R_X86_64_64, _R_X86_64_PC32, _R_X86_64_PLT32, _R_X86_64_PC64 = 1, 2, 4, 24
_WIDTHS = {1: 8, 2: 4, 4: 4, 10: 4, 11: 4, 24: 8}
_RELATIVE = {_R_X86_64_PC32, _R_X86_64_PLT32}
# Tables of entries about single instructions: asm/bug.h, asm/extable.h, asm/alternative.h,
# asm/jump_label.h, asm/static_call.h. In each the first relocation names the instruction.
TABLES = {
    "__bug_table": 12,
    "__ex_table": 12,
    ".altinstructions": 14,
    "__jump_table": 16,
    ".smp_locks": 4,
    "__mcount_loc": 8,
    ".static_call_sites": 8,
}
_REPLACEMENTS = ".altinstr_replacement"
_ALT_REPLACEMENT, _ALT_LENGTH = 4, 13  # offsets in struct alt_instr
# What neither is part of the running kernel's behaviour nor goes into a live patch.
_IGNORED = re.compile(
    r"\.(comment|note|debug|discard\.addressable|eh_frame|BTF_ids|export_symbol|llvm)"
    r"|__patchable_function_entries|__ksymtab|\.modinfo"
)
_LINE = re.compile(r"^\s*([0-9a-f]+):\t(\S+)")
_HEADING = re.compile(r"^Disassembly of section (.+):$")


@dataclass(eq=False)
class Piece:
    """A function or a variable: `start` to `end` of `section`.

    `symbol` is None for what has no name (literals that the compiler made); `aliases` are further
    symbols in it. `refs` come in the order of their offsets, `entries` are rows of tables about it.
    """

    name: str
    section: Section
    start: int
    end: int
    symbol: Symbol | None
    aliases: list[Symbol] = field(default_factory=list)
    refs: list[Ref] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        """Whether it is code."""
        return bool(self.section.flags & SHF_EXECINSTR)

    @property
    def is_global(self) -> bool:
        """Whether other objects can name it."""
        return self.symbol is not None and self.symbol.bind != 0

    @property
    def content(self) -> bytes:
        """Its bytes; zeros for what has none in the file."""
        if self.section.kind == SHT_NOBITS:
            return bytes(self.end - self.start)
        return self.section.data[self.start : self.end]

    @property
    def parent(self) -> str:
        """The function that it is the unlikely part of (gcc's NAME.cold), or its own name."""
        return self.name.removesuffix(".cold")


@dataclass(frozen=True)
class Constant:
    """A literal: `data` as it is in the section `name`, aligned to `align`."""

    name: str
    flags: int
    entsize: int
    align: int
    data: bytes


@dataclass(frozen=True)
class Outside:
    """A name that another object defines."""

    name: str


@dataclass
class Ref:
    """A reference at `offset` of a piece to `delta` bytes into `target`.

    `implied` is what the processor adds: the distance from the field to the next instruction, for
    references relative to it. `branch` says that a jump or call uses it.
    """

    offset: int
    kind: int
    target: Piece | Constant | Outside
    delta: int
    implied: int = 0
    branch: bool = False


@dataclass
class Entry:
    """A row of a table: its bytes and references; `replacement` is other code (alternatives)."""

    section: Section
    data: bytes
    refs: list[Ref]
    replacement: Piece | None = None


@dataclass
class Taken:
    """An object taken apart: pieces by name, in the object's order.

    `source` is the file it was compiled from, `exports` are the symbols that it offers modules.
    """

    source: str
    machine: int
    flags: int
    pieces: dict[str, Piece]
    exports: frozenset[str]

    @property
    def functions(self) -> list[Piece]:
        """The pieces that are code."""
        return [p for p in self.pieces.values() if p.is_text]


def is_init(section: Section) -> bool:
    """Whether the kernel throws the section away after boot (include/linux/init.h)."""
    return section.name.startswith((".init.", ".text.startup")) or ".init.text" in section.name


def is_exit(section: Section) -> bool:
    """Whether only the unloading of a module uses the section; a built-in drops it."""
    return section.name.startswith(".exit.")


def take_apart(path: Path, source: str) -> Taken:
    """Take the object at `path` apart, which was made of the file `source`.

    Raises BuildError when it is damaged, UnsupportedError when it has what a live patch cannot be
    made of.
    """
    obj = ElfObject.parse(path.read_bytes(), path.name)
    return _Taker(obj, path, source).take()


class _Taker:
    def __init__(self, obj: ElfObject, path: Path, source: str) -> None:
        self.obj = obj
        self.source = source
        self.ends, self.branches = _instructions(path)
        self.at: dict[int, tuple[list[int], list[Piece]]] = {}

    def take(self) -> Taken:
        found: dict[str, Piece] = {}
        for section in self.obj.sections:
            if not section.flags & SHF_ALLOC or _IGNORED.match(section.name):
                continue
            if section.name in TABLES or section.name.startswith(".discard."):
                continue
            if not section.size and not self._named_nothing(section):
                continue
            pieces = self._split(section)
            self.at[id(section)] = ([p.start for p in pieces], pieces)
            if section.flags & SHF_MERGE or section.name == _REPLACEMENTS:
                continue  # known by content, or by the table that leads there
            for piece in pieces:
                if piece.name in found:
                    if piece.symbol is not None:
                        raise UnsupportedError(
                            f"{self.source} has two pieces of the name {piece.name}"
                        )
                    continue
                found[piece.name] = piece
        for _, pieces in self.at.values():
            for piece in pieces:
                piece.refs = self._refs(piece.section, piece.start, piece.end)
        for section in self.obj.sections:
            if section.name in TABLES or section.name.startswith(".discard."):
                self._table(section)
        exports = {
            r.symbol.name
            for s in self.obj.sections
            if s.name.startswith(".export_symbol")
            for r in s.relocs
        }
        return Taken(self.source, self.obj.machine, self.obj.flags, found, frozenset(exports))

    def _named_nothing(self, section: Section) -> bool:
        """Whether an empty section has a variable: a structure without members, as lock classes."""
        return any(s.section is section and s.kind == STT_OBJECT for s in self.obj.symbols)

    def _split(self, section: Section) -> list[Piece]:
        """Divide a section by the symbols that have a size; what is between belongs before."""
        symbols = sorted(
            (
                s
                for s in self.obj.symbols
                if s.section is section and s.kind in (STT_FUNC, STT_OBJECT) and s.name
            ),
            key=lambda s: (s.value, -s.size),
        )
        if section.flags & SHF_MERGE or not symbols:
            return [Piece(section.name, section, 0, section.size, None)]
        pieces: list[Piece] = []
        for symbol in symbols:
            last = pieces[-1] if pieces else None
            if last is not None and last.symbol is not None:
                # Another name of the same thing, or a name within it.
                inside = symbol.value < last.symbol.value + last.symbol.size
                if inside or symbol.value == last.symbol.value:
                    last.aliases.append(symbol)
                    continue
                last.end = symbol.value
            start = symbol.value if pieces else 0
            pieces.append(Piece(symbol.name, section, start, section.size, symbol))
        return pieces

    def _refs(self, section: Section, start: int, end: int) -> list[Ref]:
        ends = self.ends.get(section.name, [])
        branches = self.branches.get(section.name, set())
        refs = []
        for r in section.relocs:
            if not start <= r.offset < end:
                continue
            if r.kind not in _WIDTHS:
                raise UnsupportedError(
                    f"{self.source}: a relocation of type {r.kind} in {section.name}"
                )
            implied, branch = 0, False
            if section.flags & SHF_EXECINSTR and r.kind in _RELATIVE:
                i = bisect.bisect_right(ends, r.offset)
                if i == len(ends):
                    raise BuildError(f"{self.source}: {section.name} ends within an instruction")
                implied = ends[i] - r.offset
                branch = ends[i] in branches
            target, delta = self._target(r.symbol, r.addend + implied)
            refs.append(Ref(r.offset - start, r.kind, target, delta, implied, branch))
        return sorted(refs, key=lambda r: r.offset)

    def _target(self, symbol: Symbol, distance: int) -> tuple[Piece | Constant | Outside, int]:
        section = symbol.section
        if section is None:
            return Outside(symbol.name), distance
        if id(section) not in self.at:
            # A table that something refers to as a whole: named, never the same address twice.
            return Outside(symbol.name or section.name), distance
        place = symbol.value + distance
        starts, pieces = self.at[id(section)]
        # A name says which piece is meant even where the distance leads out of it.
        anchor = place if symbol.kind == STT_SECTION else symbol.value
        piece = pieces[max(0, bisect.bisect_right(starts, anchor) - 1)]
        if section.flags & SHF_MERGE and piece.symbol is None:
            return _constant(section, place)
        return piece, place - piece.start

    def _table(self, section: Section) -> None:
        """Give each row of a table to the function that it is about."""
        if _IGNORED.match(section.name) or not section.relocs:
            return
        size = TABLES.get(section.name) or _WIDTHS.get(section.relocs[0].kind, 0)
        if not size or section.size % size:
            raise UnsupportedError(f"{self.source}: {section.name} has an unknown layout")
        for start in range(0, section.size, size):
            refs = self._refs(section, start, start + size)
            if not refs or refs[0].offset != 0:
                raise UnsupportedError(f"{self.source}: {section.name} has an unknown layout")
            owner = refs[0].target
            entry = Entry(section, section.data[start : start + size], refs)
            if section.name == ".altinstructions":
                entry.replacement = self._replacement(entry)
            if isinstance(owner, Piece):
                owner.entries.append(entry)

    def _replacement(self, entry: Entry) -> Piece | None:
        ref = next((r for r in entry.refs if r.offset == _ALT_REPLACEMENT), None)
        length = entry.data[_ALT_LENGTH]
        if ref is None or not isinstance(ref.target, Piece) or length == 0:
            return None
        section, start = ref.target.section, ref.target.start + ref.delta
        piece = Piece(section.name, section, start, start + length, None)
        piece.refs = self._refs(section, start, start + length)
        ref.target, ref.delta = piece, 0
        return piece


def _constant(section: Section, place: int) -> tuple[Constant, int]:
    """Return the literal at `place` of a section that the linker may merge, and where in it."""
    size = max(1, section.entsize)
    if section.flags & SHF_STRINGS:
        end = place - place % size
        while end < section.size and section.data[end : end + size] != bytes(size):
            end += size
        data, delta = section.data[place : end + size], 0
    else:
        start = place - place % size
        data, delta = section.data[start : start + size], place - start
    kept = section.flags & (SHF_ALLOC | SHF_MERGE | SHF_STRINGS | SHF_WRITE)
    name = ".rodata.str" if section.flags & SHF_STRINGS else ".rodata.cst"
    return Constant(f"{name}{size}.{section.align}", kept, size, section.align, data), delta


def _instructions(path: Path) -> tuple[dict[str, list[int]], dict[str, set[int]]]:
    """Return where instructions end in each section of code, and the ends of jumps and calls."""
    done = run(
        [require("objdump", package="binutils"), "-d", "-z", "-w", "--no-show-raw-insn", path],
        timeout=600,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )
    ends: dict[str, list[int]] = {}
    branches: dict[str, set[int]] = {}
    sizes = {s.name: s.size for s in ElfObject.parse(path.read_bytes(), path.name).sections}
    for section, rows in _sections_of(done.stdout.splitlines()):
        starts = [at for at, _ in rows]
        section_ends = [*starts[1:], sizes.get(section, 0)]
        ends[section] = section_ends
        branches[section] = {
            end
            for (_, word), end in zip(rows, section_ends, strict=True)
            if word.startswith(("call", "j"))
        }
    return ends, branches


_PREFIXES = frozenset({"addr32", "bnd", "cs", "data16", "ds", "lock", "notrack", "rep", "repz"})


def _sections_of(lines: list[str]) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    name, rows = "", list[tuple[int, str]]()
    for line in lines:
        if heading := _HEADING.match(line):
            if rows:
                yield name, rows
            name, rows = heading[1], []
        elif found := _LINE.match(line):
            words = line.split("\t", 1)[1].split()
            word = next((w for w in words if w not in _PREFIXES), found[2])
            rows.append((int(found[1], 16), word))
    if rows:
        yield name, rows
