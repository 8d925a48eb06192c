"""Objects found in a symbol map."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernel.livepatch.conftest import Compile

from tegu.errors import UnsupportedError, VerifyError
from tegu.kernel.livepatch.elf import ElfObject
from tegu.kernel.livepatch.locate import Place, SymbolMap, locate

TEXT = """
__attribute__((noinline)) static int show(int x) { return x + 1; }
int first(int x) { return show(x) * 2; }
static int state; int second(void) { return ++state; }
"""


def kernel_of(path: Path, base: int) -> list[tuple[int, str, str]]:
    """Return the rows of a map of a kernel that has the object's code at `base`."""
    obj = ElfObject.parse(path.read_bytes())
    rows = []
    for s in obj.symbols:
        if s.section is not None and s.kind in (1, 2) and s.name:
            at = base + s.value + (0x100000 if s.section.name == ".bss" else 0)
            rows.append((at, "T" if s.bind else "t", s.name))
    return rows


def symbol_map(rows: list[tuple[int, str, str]]) -> SymbolMap:
    return SymbolMap("".join(f"{at:016x} {kind} {name}\n" for at, kind, name in sorted(rows)))


def test_positions_of_a_name_that_several_have(compile_c: Compile) -> None:
    path = compile_c("x", TEXT)
    rows = kernel_of(path, 0xFFFFFFFF81200000)
    others = [(0xFFFFFFFF81100000, "t", "show"), (0xFFFFFFFF81300000, "t", "show")]
    symbols = symbol_map([*rows, *others])
    found = locate(ElfObject.parse(path.read_bytes()), symbols, "x.c")
    assert symbols.at("show", found["show"]) == Place("show", 2)
    assert symbols.at("first", found["first"]) == Place("first", 0)


def test_another_compilers_code_is_refused(compile_c: Compile) -> None:
    path = compile_c("x", TEXT)
    rows = [
        (at + (16 if name == "second" else 0), k, name)
        for at, k, name in kernel_of(path, 0xFFFFFFFF81200000)
    ]
    with pytest.raises(VerifyError, match=r"x\.c: its code \(\.text\) is not in the installed"):
        locate(ElfObject.parse(path.read_bytes()), symbol_map(rows), "x.c")


def test_outside_names() -> None:
    symbols = symbol_map([(16, "t", "f"), (32, "T", "f"), (48, "t", "g"), (64, "D", "h")])
    assert symbols.outside("f") == Place("f", 2)
    assert symbols.outside("h") == Place("h", 0)
    for name in ("g", "nothing"):
        with pytest.raises(UnsupportedError, match=f"no symbol {name} that is not static"):
            symbols.outside(name)


@given(st.text(max_size=80))
def test_any_text(text: str) -> None:
    try:
        SymbolMap(text, "map")
    except VerifyError as e:
        assert e.message.startswith("map:")
