"""The replaced and new functions of an object, as an object of their own.

What they refer to and the running kernel has stays undefined. Symbols that are exported to modules
keep their names; all others are called what the kernel's live patching wants to read,
`.klp.sym.OBJECT.NAME,POSITION` (Documentation/livepatch/module-elf-format.rst), so that no two are
mixed up when the module is linked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tegu.errors import UnsupportedError
from tegu.kernel.livepatch.compare import Change, is_copied
from tegu.kernel.livepatch.elf import (
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
    ElfObject,
    Reloc,
    Section,
    Symbol,
)
from tegu.kernel.livepatch.pieces import Constant, Entry, Outside, Piece, Ref

__all__ = ["Extract", "extract"]


@dataclass(frozen=True, slots=True)
class Extract:
    """An object with what a patch needs; `entries` are global names by the function replaced."""

    obj: ElfObject
    entries: dict[str, str]
    added: tuple[str, ...]
    data: tuple[str, ...]


def extract(
    change: Change,
    prefix: str,
    *,
    original: Callable[[Piece], str],
    outside: Callable[[str], str],
) -> Extract:
    """Make an object of what `change` replaces and adds.

    `original` names what the original object defines, `outside` what others define. The replaced
    functions can be reached by global names that begin with `prefix`. Raises UnsupportedError for a
    reference that no live patch can make.
    """
    return _Extractor(change, prefix, original, outside).run()


class _Extractor:
    def __init__(
        self,
        change: Change,
        prefix: str,
        original: Callable[[Piece], str],
        outside: Callable[[str], str],
    ) -> None:
        self.change = change
        self.prefix = prefix
        self.original = original
        self.outside = outside
        self.obj = ElfObject(change.patched.machine, change.patched.flags)
        self.placed: dict[int, Symbol] = {}
        self.bases: dict[int, int] = {}
        self.undefined: dict[str, Symbol] = {}
        self.constants: dict[Constant, Symbol] = {}
        self.sections: dict[int, Symbol] = {}
        self.tables: dict[str, Section] = {}
        self.waiting: list[tuple[Piece, Section]] = []
        self.added: list[str] = []
        self.data: list[str] = []

    def run(self) -> Extract:
        pieces = self.change.patched.pieces
        entries = {}
        for number, name in enumerate(self.change.functions):
            symbol = self._place(pieces[name])
            alias = f"{self.prefix}{number}"
            entries[name] = alias
            self.obj.symbols.append(
                Symbol(alias, symbol.section, symbol.value, symbol.size, STB_GLOBAL, STT_FUNC)
            )
        while self.waiting:
            piece, section = self.waiting.pop(0)
            section.relocs += self._relocs(piece, piece.refs, 0)
            for entry in piece.entries:
                self._entry(piece, entry)
        return Extract(self.obj, entries, tuple(self.added), tuple(self.data))

    def _place(self, piece: Piece) -> Symbol:
        """Copy a piece into the object, once; returns its symbol."""
        if id(piece) in self.placed:
            return self.placed[id(piece)]
        old = piece.section
        section = Section(
            *(old.name, old.kind, old.flags, b"", 0, old.align, old.entsize),
        )
        if section.kind == SHT_PROGBITS:
            section.data = piece.content
        else:
            section.nobits = piece.end - piece.start
        self.obj.sections.append(section)
        new = piece.name in self.change.added or (piece.symbol is not None and not piece.is_text)
        named = piece.symbol
        symbol = Symbol(
            piece.name if named is not None else f".L{piece.name}.{len(self.placed)}",
            section,
            0 if named is None else named.value - piece.start,
            piece.end - piece.start if named is None else named.size,
            STB_GLOBAL if new and piece.is_global else STB_LOCAL,
            STT_OBJECT if named is None else named.kind,
        )
        self.obj.symbols.append(symbol)
        self.placed[id(piece)] = symbol
        self.bases[id(piece)] = symbol.value
        self.waiting.append((piece, section))
        if piece.name in self.change.added:
            self.added.append(piece.name)
        elif not piece.is_text and named is not None and not is_copied(piece):
            self.data.append(piece.name)
        return symbol

    def _relocs(
        self, user: Piece, refs: list[Ref], shift: int, *, table: bool = False
    ) -> list[Reloc]:
        return [self._reloc(user, ref, shift, table) for ref in refs]

    def _reloc(self, user: Piece, ref: Ref, shift: int, table: bool) -> Reloc:
        target = ref.target
        delta = ref.delta - ref.implied
        if isinstance(target, Outside):
            symbol = self._undefined(self.outside(target.name))
        elif isinstance(target, Constant):
            symbol = self._constant(target)
        else:
            symbol = self._symbol(user, ref, target, table)
            # Symbols need not be at the start of their piece: there may be padding before.
            delta -= self.bases.get(id(target), self._lead(target))
        return Reloc(ref.offset + shift, ref.kind, symbol, delta)

    @staticmethod
    def _lead(piece: Piece) -> int:
        return 0 if piece.symbol is None else piece.symbol.value - piece.start

    def _symbol(self, user: Piece, ref: Ref, target: Piece, table: bool) -> Symbol:
        """Say what a reference to a piece of the patched object means in the live patch."""
        if target.is_text:
            if target.symbol is None:
                return self._place(target)
            # Jumps between a function and its unlikely part, and rows of tables about it.
            unit = target.parent == user.parent
            if unit and (table or ref.branch or ref.delta != self._lead(target)):
                return self._place(target)
            if target.name in self.change.added:
                return self._place(target)
            if target.name in self.change.functions and ref.branch:
                return self._place(target)
            if ref.delta != self._lead(target):
                raise UnsupportedError(
                    f"{user.name} refers into the middle of {target.name}, which the patch does "
                    "not replace"
                )
            # A pointer to a function must be the same before and after the live patch, and must
            # not lead into a module that may go: the kernel's own function redirects by itself.
            return self._undefined(self.original(self.change.original.pieces[target.name]))
        if is_copied(target):
            return self._place(target)
        name = self.change.originals.get(target.name)
        if name is None:
            return self._place(target)
        return self._undefined(self.original(self.change.original.pieces[name]))

    def _undefined(self, name: str) -> Symbol:
        if name not in self.undefined:
            self.undefined[name] = Symbol(name)
            self.obj.symbols.append(self.undefined[name])
        return self.undefined[name]

    def _constant(self, constant: Constant) -> Symbol:
        if constant not in self.constants:
            section = self._grow(
                constant.name, constant.flags, constant.align, constant.entsize, constant.data
            )
            value = section.size - len(constant.data)
            name = f".LC{len(self.constants)}"
            symbol = Symbol(name, section, value, 0, STB_LOCAL, STT_NOTYPE)
            self.obj.symbols.append(symbol)
            self.constants[constant] = symbol
        return self.constants[constant]

    def _grow(self, name: str, flags: int, align: int, entsize: int, data: bytes) -> Section:
        """Append `data` to the section that collects such things."""
        if name not in self.tables:
            self.tables[name] = Section(name, flags=flags, align=align, entsize=entsize)
            self.obj.sections.append(self.tables[name])
        section = self.tables[name]
        section.data += bytes(-len(section.data) % align) + data
        return section

    def _entry(self, user: Piece, entry: Entry) -> None:
        old = entry.section
        section = self._grow(old.name, old.flags, 1, old.entsize, entry.data)
        section.align = max(section.align, old.align)
        start = section.size - len(entry.data)
        code = entry.replacement
        if code is not None:
            space = self._grow(code.name, code.section.flags, 1, 0, code.content)
            value = space.size - len(code.content)
            symbol = Symbol(
                f".Lreplacement{value}", space, value, len(code.content), STB_LOCAL, STT_NOTYPE
            )
            self.obj.symbols.append(symbol)
            self.placed[id(code)], self.bases[id(code)] = symbol, 0
            space.relocs += self._relocs(user, code.refs, value)
        for reloc in self._relocs(user, entry.refs, start, table=True):
            # Tables name a section and a distance, as the assembler has it: objtool expects that.
            section.relocs.append(self._by_section(reloc))

    def _by_section(self, reloc: Reloc) -> Reloc:
        section = reloc.symbol.section
        if section is None:
            return reloc
        if id(section) not in self.sections:
            symbol = Symbol("", section, 0, 0, STB_LOCAL, STT_SECTION)
            self.obj.symbols.append(symbol)
            self.sections[id(section)] = symbol
        addend = reloc.addend + reloc.symbol.value
        return Reloc(reloc.offset, reloc.kind, self.sections[id(section)], addend)
