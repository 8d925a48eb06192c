"""Where the functions and variables of an object lie in the installed kernel.

The kernel finds a symbol for a live patch by name and, where several have it, by its position among
them in the order of addresses (Documentation/livepatch/livepatch.rst, `old_sympos`). An object
that is compiled as the kernel was lies in it as a whole: one distance fits all symbols of one of
its sections. That tells names apart, and shows that source and compiler are the kernel's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UnsupportedError, VerifyError
from tegu.kernel.livepatch.elf import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    STB_WEAK,
    STT_FUNC,
    STT_OBJECT,
    ElfObject,
    Section,
)

__all__ = ["Place", "SymbolMap", "locate"]


@dataclass(frozen=True, slots=True)
class Place:
    """A symbol of the kernel; `position` is 0 when no other has its name, else counted from 1."""

    name: str
    position: int


class SymbolMap:
    """System.map: addresses, types (nm(1): capital for what other objects see) and names."""

    def __init__(self, text: str, where: str = "System.map") -> None:
        self._by_name: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            try:
                address, kind, name = int(words[0], 16), words[1], words[2]
            except (ValueError, IndexError) as e:
                raise VerifyError(f"{where}:{number}: not a line of a symbol map") from e
            self._by_name[name].append((address, kind))
        if not self._by_name:
            raise VerifyError(f"{where}: no symbol in it")
        for rows in self._by_name.values():
            rows.sort()

    @classmethod
    def read(cls, path: Path) -> SymbolMap:
        """Read the file at `path`."""
        return cls(path.read_text(errors="replace"), path.name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def addresses(self, name: str) -> list[int]:
        """Return the addresses of all symbols of this name."""
        return [address for address, _ in self._by_name.get(name, ())]

    def at(self, name: str, address: int) -> Place:
        """Return the symbol of this name that is at `address`."""
        addresses = self.addresses(name)
        return Place(name, 0 if len(addresses) == 1 else 1 + addresses.index(address))

    def outside(self, name: str) -> Place:
        """Return the symbol of this name that all objects of the kernel can see."""
        rows = self._by_name.get(name, [])
        visible = [address for address, kind in rows if kind.isupper()]
        if len(visible) != 1:
            count = "no symbol" if not visible else f"{len(visible)} symbols"
            raise UnsupportedError(f"the installed kernel has {count} {name} that is not static")
        return self.at(name, visible[0])


def locate(obj: ElfObject, symbols: SymbolMap, source: str) -> dict[str, int]:
    """Return the addresses of the symbols that `obj`, compiled from `source`, defines.

    What cannot be told from others of its name is left out. Raises VerifyError when the object's
    code is not in the kernel as it was compiled here.
    """
    found: dict[str, int] = {}
    for section in obj.sections:
        if not section.flags & SHF_ALLOC:
            continue
        names = {
            s.name: s.value
            for s in obj.symbols
            if s.section is section
            and s.kind in (STT_FUNC, STT_OBJECT)
            and s.bind != STB_WEAK  # another object's may have been taken instead
            and s.name in symbols
        }
        if not names:
            continue
        bases = _bases(names, symbols)
        if not bases and section.flags & SHF_EXECINSTR:
            _refuse(section, source)
        if len(bases) == 1:
            (base,) = bases
            found |= {name: base + value for name, value in names.items()}
    return found


def _bases(names: dict[str, int], symbols: SymbolMap) -> set[int]:
    """Return the addresses at which a section with these symbols may begin."""
    bases: set[int] | None = None
    for name, value in names.items():
        here = {address - value for address in symbols.addresses(name)}
        bases = here if bases is None else bases & here
    return bases or set()


def _refuse(section: Section, source: str) -> None:
    raise VerifyError(
        f"{source}: its code ({section.name}) is not in the installed kernel as it compiles here",
        hint="the kernel was made from other source or by another compiler; build it again with "
        "`tegu kernel build`, or name the recipe that it was built from",
    )
